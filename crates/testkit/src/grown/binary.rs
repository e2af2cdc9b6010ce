//! Formats of bytes.

use crate::Dice;

/// Numbers at which sizes are tried.
const NUMBERS: [u64; 10] = [0, 1, 2, 3, 6, 255, 65_536, 0x7fff_ffff, i64::MAX as u64, u64::MAX];

/// A program of Python's pickle machine that makes a table of tensors, as one protocol or another writes it.
pub fn pickle(dice: &mut Dice) -> Vec<u8> {
    let mut out = Vec::new();
    if !dice.once_in(8) {
        out.extend([0x80, 2 + dice.below(4) as u8]);
    }
    if dice.once_in(4) {
        out.push(0x95);
        out.extend(dice.below(1 << 16).to_le_bytes());
    }
    let mut it = Pickle { out, memo: 0 };
    it.table(dice);
    let many = dice.once_in(2);
    it.out.extend(if many { &b"("[..] } else { b"" });
    for at in 0..dice.below(4) {
        let name = format!("layer.{}.weight", at / (1 + dice.below(2)));
        it.text(dice, &name);
        it.tensor(dice);
        it.out.extend(if many { &b""[..] } else { b"s" });
    }
    it.out.extend(if many { &b"u"[..] } else { b"" });
    if dice.once_in(4) {
        it.table(dice);
        it.out.push(b'b');
    }
    if dice.once_in(12) {
        it.anything(dice);
    }
    it.out.push(b'.');
    it.out
}

struct Pickle {
    out: Vec<u8>,
    /// How much was remembered.
    memo: usize,
}

impl Pickle {
    /// What is on top, remembered in one of three ways, or not.
    fn remember(&mut self, dice: &mut Dice) {
        match dice.below(6) {
            0 => self.out.extend([b'q', self.memo as u8]),
            1 => {
                self.out.push(b'r');
                self.out.extend((self.memo as u32).to_le_bytes());
            }
            2 => self.out.push(0x94),
            _ => return,
        }
        self.memo += 1;
    }

    fn text(&mut self, dice: &mut Dice, text: &str) {
        if dice.once_in(2) {
            self.out.push(b'X');
            self.out.extend((text.len() as u32).to_le_bytes());
        } else {
            self.out.extend([0x8c, text.len() as u8]);
        }
        self.out.extend(text.as_bytes());
        if dice.once_in(100) {
            self.out.extend([0xff, b'X']);
        }
        self.remember(dice);
    }

    fn number(&mut self, dice: &mut Dice, value: u64) {
        match dice.below(4) {
            0 if value < 256 => self.out.extend([b'K', value as u8]),
            1 if value < 65_536 => self.out.extend([b'M', value as u8, (value >> 8) as u8]),
            2 => {
                let most = if dice.once_in(20) { 12 } else { 9 };
                let len = dice.below(most);
                self.out.extend([0x8a, len as u8]);
                self.out.extend(value.to_le_bytes().into_iter().chain([0; 4]).take(len));
            }
            _ => {
                self.out.push(b'J');
                self.out.extend((value as u32).to_le_bytes());
            }
        }
    }

    fn function(&mut self, dice: &mut Dice, module: &str, name: &str) {
        if dice.once_in(2) {
            self.out.extend(format!("c{module}\n{name}\n").into_bytes());
        } else {
            self.text(dice, module);
            self.text(dice, name);
            self.out.push(0x93);
        }
        self.remember(dice);
    }

    fn table(&mut self, dice: &mut Dice) {
        if dice.once_in(2) {
            self.out.push(b'}');
        } else {
            self.function(dice, "collections", "OrderedDict");
            self.out.extend(b")R");
        }
        self.remember(dice);
    }

    /// Numbers as a tuple or a list, in each way there is.
    fn sizes(&mut self, dice: &mut Dice, sizes: &[u64]) {
        let way = dice.below(4);
        self.out.extend(match way {
            0 if sizes.len() < 4 => &b""[..],
            1 => b"](",
            2 => b"]",
            _ => b"(",
        });
        for size in sizes {
            self.number(dice, *size);
            self.out.extend(if way == 2 { &b"a"[..] } else { b"" });
        }
        match way {
            0 if sizes.len() < 4 => self.out.push([b')', 0x85, 0x86, 0x87][sizes.len()]),
            1 => self.out.push(b'e'),
            2 => {}
            _ => self.out.push(b't'),
        }
        self.remember(dice);
    }

    fn tensor(&mut self, dice: &mut Dice) {
        let kinds = ["Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool", "Quantum"];
        if dice.once_in(30) {
            return self.anything(dice);
        }
        let is_parameter = dice.once_in(3);
        if is_parameter {
            self.function(dice, "torch._utils", "_rebuild_parameter");
            self.out.push(b'(');
        }
        self.function(dice, "torch._utils", "_rebuild_tensor_v2");
        self.out.extend(b"((");
        let what = if dice.once_in(30) { "module" } else { "storage" };
        self.text(dice, what);
        let kind = *dice.one_of(&kinds);
        self.function(dice, "torch", &format!("{kind}Storage"));
        let name = dice.below(3).to_string();
        self.text(dice, &name);
        self.text(dice, "cpu");
        self.number(dice, 6);
        self.out.extend(b"tQ");
        self.remember(dice);
        let odd = dice.once_in(6);
        let offset = if odd { *dice.one_of(&NUMBERS) } else { 0 };
        self.number(dice, offset);
        let dims = if dice.once_in(30) { 70 } else { dice.below(4) };
        let shape: Vec<u64> =
            (0..dims).map(|_| if odd { *dice.one_of(&NUMBERS) } else { 1 + dice.below(3) as u64 }).collect();
        let product = |of: &[u64]| of.iter().fold(1u64, |all, it| all.wrapping_mul(*it));
        let mut strides: Vec<u64> = (0..dims).map(|it| product(&shape[it + 1..])).collect();
        if dice.once_in(8) {
            strides.reverse();
        }
        if dice.once_in(20) {
            strides.pop();
        }
        self.sizes(dice, &shape);
        self.sizes(dice, &strides);
        self.out.push(if dice.once_in(2) { 0x88 } else { 0x89 });
        self.table(dice);
        self.out.extend(b"tR");
        if is_parameter {
            self.out.push(0x88);
            self.table(dice);
            self.out.extend(b"tR");
        }
        self.remember(dice);
    }

    /// A value that no tensor is made of, or an instruction out of place.
    fn anything(&mut self, dice: &mut Dice) {
        match dice.below(12) {
            0 => self.out.push(b'N'),
            1 => self.out.extend([b'G', 0, 0, 0, 0, 0, 0, 0xf0, 0x3f]),
            2 => {
                let value = *dice.one_of(&NUMBERS);
                self.number(dice, value);
            }
            3 => self.text(dice, "a text"),
            4 => self.function(dice, "os", "system"),
            5 => self.sizes(dice, &[1, 2]),
            6 => self.out.extend([b'h', dice.below(self.memo + 2) as u8]),
            7 => {
                self.out.push(b'j');
                self.out.extend((dice.below(self.memo + 2) as u32).to_le_bytes());
            }
            8 => self.out.push(*dice.one_of(b"RQbsuaet.")),
            9 => self.out.extend([b'(', *dice.one_of(b"tuse")]),
            10 => self.out.push(0x85 + dice.below(3) as u8),
            _ => self.out.push(dice.below(256) as u8),
        }
    }
}

/// An archive of these parts: wide records, comments and extra fields at times, and now and then a field that lies.
pub fn zip(dice: &mut Dice, parts: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in parts {
        let wide = dice.once_in(3);
        let at = out.len() as u64;
        let lie = |it: u64, dice: &mut Dice| if dice.once_in(60) { *dice.one_of(&NUMBERS) } else { it };
        let (size, begin) = (lie(bytes.len() as u64, dice), lie(at, dice));
        let narrow = |it: u64| (if wide { u32::MAX } else { it as u32 }).to_le_bytes();
        let extra: Vec<u8> = match wide {
            true => {
                [&[9, 0, 2, 0, 7, 7, 1, 0, 24, 0][..], &size.to_le_bytes(), &size.to_le_bytes(), &begin.to_le_bytes()]
                    .concat()
            }
            false => vec![0; dice.below(4)],
        };
        let method = u16::from(dice.once_in(60)).to_le_bytes();
        let padding = vec![0; dice.below(8)];
        let sizes = [narrow(size), narrow(size)].concat();
        let lengths = |extra: usize| [(name.len() as u16).to_le_bytes(), (extra as u16).to_le_bytes()].concat();
        out.extend([&b"PK\x03\x04\0\0\0\0"[..], &method, &[0; 8], &sizes, &lengths(padding.len())].concat());
        out.extend([name.as_bytes(), &padding, bytes].concat());
        directory.extend(
            [&b"PK\x01\x02\0\0\0\0\0\0"[..], &method, &[0; 8], &sizes, &lengths(extra.len()), &[0; 10]].concat(),
        );
        directory.extend([&narrow(begin)[..], name.as_bytes(), &extra].concat());
    }
    let (at, size) = (out.len() as u64, directory.len() as u64);
    out.extend(directory);
    if dice.once_in(3) {
        let record = out.len() as u64;
        out.extend(
            [&b"PK\x06\x06"[..], &44u64.to_le_bytes(), &[0; 28], &size.to_le_bytes(), &at.to_le_bytes()].concat(),
        );
        out.extend([&b"PK\x06\x07\0\0\0\0"[..], &record.to_le_bytes(), &[1, 0, 0, 0]].concat());
    }
    let counts = (parts.len() as u16).to_le_bytes();
    out.extend(
        [&b"PK\x05\x06\0\0\0\0"[..], &counts, &counts, &(size as u32).to_le_bytes(), &(at as u32).to_le_bytes()]
            .concat(),
    );
    out.extend([0, 0]);
    let most = 1 + 40 * dice.below(2);
    out.extend(vec![b' '; dice.below(most)]);
    out
}

/// A model of SentencePiece, whose pieces are these.
pub fn pieces(dice: &mut Dice, words: &[&str]) -> Vec<u8> {
    let field = |number: u8, bytes: &[u8]| [&[number << 3 | 2, bytes.len() as u8][..], bytes].concat();
    let mut out = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let kind = if dice.once_in(20) { dice.below(9) } else { [2, 3, 3, 6].get(at).copied().unwrap_or(1) };
        let mut piece = field(1, word.as_bytes());
        piece.extend([0x15, 0, 0, 0x80, 0xbf]);
        piece.extend([0x18, kind as u8]);
        out.extend(field(1, &piece));
    }
    let kind = if dice.once_in(10) { dice.below(5) as u8 } else { 2 };
    out.extend(field(2, &[0x18, kind, 0x21, 0, 0, 0, 0, 0, 0, 0, 0]));
    if dice.once_in(10) {
        out.extend([0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]);
    }
    out
}
