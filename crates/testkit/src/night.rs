//! Attempts at random: a fixed number where tests run, and as many as `cargo xtask torture` allows time for.

use std::{
    env,
    fs::OpenOptions,
    io::Write,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// How much is tried: the seeds of attempts, one after the other.
#[derive(Debug)]
pub struct Night {
    what: &'static str,
    begun: Instant,
    length: Option<Duration>,
    first: u64,
    tried: u64,
    usual: u64,
    /// How many were reported, and when.
    told: (u64, Duration),
}

/// What is not reported yet when a night is ended.
const BETWEEN_REPORTS: Duration = Duration::from_secs(10);

impl Night {
    /// `usual` attempts, or as many as the minutes allow that `cargo xtask torture` asks for.
    pub fn new(what: &'static str, usual: u64) -> Night {
        let number = |name: &str| env::var(name).ok().map(|it| it.parse::<u64>().expect("xtask sets a number"));
        Night {
            what,
            begun: Instant::now(),
            length: number("HALFBYTE_TORTURE_SECONDS").map(Duration::from_secs),
            first: number("HALFBYTE_TORTURE_SEED").unwrap_or(1),
            tried: 0,
            usual,
            told: (0, Duration::ZERO),
        }
    }

    fn tell(&mut self, now: Duration) {
        report(self.what, self.tried - self.told.0, self.first);
        self.told = (self.tried, now);
    }
}

impl Iterator for Night {
    type Item = Dice;

    fn next(&mut self) -> Option<Dice> {
        let now = self.begun.elapsed();
        if !self.length.map_or(self.tried < self.usual, |length| now < length) {
            self.tell(now);
            return None;
        }
        if now - self.told.1 >= BETWEEN_REPORTS {
            self.tell(now);
        }
        let seed = self.first.wrapping_add(self.tried);
        self.tried += 1;
        Some(Dice::new(seed))
    }
}

/// Whether `cargo xtask torture` asks for as much as there is time for.
pub fn is_long() -> bool {
    env::var_os("HALFBYTE_TORTURE_SECONDS").is_some()
}

/// What was measured, for people.
#[allow(clippy::print_stdout, reason = "the test harness shows it to people")]
pub fn say(text: &str) {
    println!("{text}");
}

/// A line for `cargo xtask torture`, which sums up what its tests did.
pub fn report(what: &str, tried: u64, seed: u64) {
    if let Some(path) = env::var_os("HALFBYTE_TORTURE_REPORT") {
        let line = format!("{what}\t{tried}\t{seed}\n");
        let file = OpenOptions::new().create(true).append(true).open(Path::new(&path));
        file.and_then(|mut it| it.write_all(line.as_bytes())).expect("xtask names a file that can be written");
    }
}

/// Random numbers of one attempt.
#[derive(Clone, Debug)]
pub struct Dice {
    /// What they follow from.
    pub seed: u64,
    drawn: u64,
}

impl Dice {
    /// Those of a seed.
    pub fn new(seed: u64) -> Dice {
        Dice { seed, drawn: 0 }
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.drawn += 1;
        let mut z = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.drawn.wrapping_mul(0xd1b5_4a32_d192_ed03);
        for shift in [30, 27, 31] {
            z = (z ^ z >> shift).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        }
        ((z >> 16) % n.max(1) as u64) as usize
    }

    /// One of a list.
    pub fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    /// True once in `n`.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// What a failure says beside what it saw.
    pub fn repeats(&self) -> String {
        format!("repeat it with: cargo xtask torture --minutes 1 --seed {}", self.seed)
    }
}

/// Fails, with the seed, if an attempt takes too long: a hang would be seen by nobody else.
#[derive(Debug)]
pub struct Watchdog {
    at: Arc<(AtomicU64, AtomicU64)>,
}

/// Longest attempt.
const PATIENCE: Duration = Duration::from_secs(60);

impl Watchdog {
    /// Watches attempts of a name.
    pub fn new(what: &'static str) -> Watchdog {
        let at = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
        let watched = Arc::downgrade(&at);
        thread::spawn(move || {
            // Counted and not measured: a process that was stopped for a while did not hang.
            let (mut last, mut looks) = (0, 0);
            while let Some(at) = watched.upgrade() {
                let now = at.0.load(Ordering::Relaxed);
                looks = if now == last { looks + 1 } else { 0 };
                last = now;
                if now != 0 && looks > PATIENCE.as_secs() {
                    #[allow(clippy::print_stderr, reason = "nobody else can say it")]
                    {
                        eprintln!("{what}: seed {} takes for ever", at.1.load(Ordering::Relaxed));
                    }
                    std::process::abort();
                }
                drop(at);
                thread::sleep(Duration::from_secs(1));
            }
        });
        Watchdog { at }
    }

    /// An attempt begins.
    pub fn begins(&self, dice: &Dice) {
        self.at.1.store(dice.seed, Ordering::Relaxed);
        self.at.0.fetch_add(1, Ordering::Relaxed);
    }
}
