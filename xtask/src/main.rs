//! Project automation behind `cargo xtask`: the one place that knows how Halfbyte is checked, built and run.
//!
//! It is compiled before anything else can start, so it stays light: it never links the trainer but runs its binary.

// Talking to the terminal is this program's purpose; the lint guards the libraries.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::ffi::OsString;
use std::process::ExitCode;

mod arm;
mod bench;
mod bundle;
mod chats;
mod ci;
mod coverage;
mod finetune;
mod generator;
mod kernels;
mod package_check;
mod parity;
mod pretrain;
mod python;
mod reproducible;
mod roofline;
mod supply;
mod tidy;
mod torture;
mod workspace;

mod flags {
    use std::ffi::OsString;
    use std::path::PathBuf;

    xflags::xflags! {
        /// Halfbyte's own tasks, run as `cargo xtask <task>`.
        cmd xtask {
            /// Everything that continuous integration checks, cheapest first: fmt, tidy, clippy, test, doc.
            cmd ci {
                /// Run this step alone.
                optional --only step: String
            }
            /// The layering, file sizes, `unsafe`, and the paths that the documentation names.
            cmd tidy {
                /// Write what the documents count, such as each crate's `unsafe`, anew.
                optional --write
            }
            /// Ask `cargo deny` about licences, advisories and versions, where it is installed.
            cmd supply {
                /// Take the advisories that were fetched before.
                optional --offline
            }
            /// Build the program in two folders and compare what came out, byte for byte.
            cmd reproducible {
                /// A folder for both, which must be new; it is removed when they are alike.
                required --within dir: PathBuf
                /// The profile, release when left out.
                optional --profile name: String
                /// The package, halfbyte-trainer when left out; another one has its program under its own name.
                optional --package name: String
            }
            /// Fine-tune the embedded model on the embedded reviews; arguments go to `halfbyte finetune` unchanged.
            cmd finetune {
                repeated args: OsString
            }
            /// Make the tiny base models of the embedded default again, from nothing.
            cmd pretrain {
                /// llama or gpt-neo; both when left out.
                optional --arch arch: String
            }
            /// Speed and memory beside the Python stack's, written to docs/benchmarks, a page a processor.
            cmd bench {
                /// Folder of SmolLM2-135M.
                required --model dir: PathBuf
                /// A parquet file of long texts in a column `text`.
                required --data file: PathBuf
                /// A virtual environment with tests/reference/requirements.txt; without it nothing is compared.
                optional --python venv: PathBuf
                /// Rounds of each run; 3 when left out.
                optional --rounds n: usize
                /// Also train a LLaMA of 7 B and a GPT-Neo of 1.3 B, whose weights (14 GB) are written here and removed.
                optional --large dir: PathBuf
            }
            /// Compare with transformers, peft and bitsandbytes from scratch; the figures go to docs/parity.md.
            cmd parity {
                /// A virtual environment with tests/reference/requirements.txt.
                required --python venv: PathBuf
                /// Folder of SmolLM2-135M.
                required --model dir: PathBuf
                /// A parquet file of texts in a column `text`, to train on.
                required --train file: PathBuf
                /// A folder of text to measure losses on.
                required --test file: PathBuf
            }
            /// Compare generated model folders, each odd in some way, with transformers and peft.
            cmd folders {
                /// A virtual environment with tests/reference/requirements.txt.
                required --python venv: PathBuf
                /// The program; it is built if left out.
                optional --halfbyte exe: PathBuf
                /// How many; 300 if left out.
                optional --count n: usize
                /// Others for every seed; 2 if left out.
                optional --seed n: usize
            }
            /// Compare what chat templates write with transformers, byte for byte.
            cmd chats {
                /// A virtual environment with tests/reference/requirements.txt.
                required --python venv: PathBuf
                /// A folder of .jinja files.
                required --templates dir: PathBuf
            }
            /// Compile every CUDA kernel with NVRTC for real architectures; no GPU is needed.
            cmd kernels {
                /// A virtual environment that has NVRTC; its wheel is fetched once if left out.
                optional --python venv: PathBuf
            }
            /// Test what is written for ARM under an emulator; says what is missing where that cannot be.
            cmd arm {}
            /// Pack programs, tests and scripts for a machine with a GPU and without cargo.
            cmd bundle {
                /// The folder; it must be new.
                required --output dir: PathBuf
            }
            /// Make tests/fixtures again with the Python stack.
            cmd fixtures {
                /// A virtual environment with tests/reference/requirements.txt.
                required --python venv: PathBuf
            }
            /// Write a model folder of a real model's shape with random weights, a tensor at a time.
            cmd synth {
                /// llama-7b, mistral-7b, qwen2.5-7b, qwen3-8b and others; a wrong name lists them.
                required --like shape: String
                /// In NF4 with double quantisation, as bitsandbytes saves it: a quarter of the disk.
                optional --quantized
                /// The folder; it must be new or empty.
                required --output dir: PathBuf
            }
            /// What a step of QLoRA on a model of a real shape costs on a card, op by op, by a rehearsal: no GPU, no weights.
            cmd roofline {
                /// As `synth` has it.
                required --like shape: String
                /// Rows a step; 4 when left out.
                optional --batch n: usize
                /// Tokens a row; 2048 when left out.
                optional --length n: usize
                /// With blocks recomputed.
                optional --recomputed
                /// With blocks recomputed from inputs in host memory.
                optional --offloaded
                /// MiB of optimizer state on the card; all when left out.
                optional --resident n: usize
                /// A card by its name, h100 when left out; a wrong one lists them.
                optional --card name: String
            }
            /// Kill, refuse, cut short and compare for so long, and print what was tried; a failure names the seed that repeats it.
            cmd torture {
                /// Minutes that each kind of trouble takes; all go on side by side.
                required --minutes n: u64
                /// The seed of the first attempt; 1 when left out.
                optional --seed n: u64
                /// Tests whose names hold this alone, such as `kills`.
                optional --only name: String
            }
            /// Give every reader of foreign files inputs that are nearly right, all side by side, and print how many.
            cmd fuzz {
                /// Minutes that each reader takes.
                required --minutes n: u64
                /// The seed of the first input; 1 when left out.
                optional --seed n: u64
                /// Readers whose tests' names hold this alone, such as `pickles`.
                optional --only name: String
                /// Count what of each reader's sources its inputs reach, and print the share; needs LLVM's tools.
                optional --coverage
            }
            /// Print how much the last torture or fuzz has tried, also while it goes on or after it was ended.
            cmd tally {}
            /// Package the reusable crates and build a consumer of each outside the workspace.
            cmd package-check {
                /// One of nf4, matmul, data, files, paged-optim, lora; all when left out.
                optional --only consumer: String
            }
        }
    }
}

fn main() -> ExitCode {
    match run(std::env::args_os().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Vec<OsString>) -> anyhow::Result<()> {
    // Before the parser sees them: these flags are not ours, and `--help` among them asks about the fine-tuning.
    if args.first().is_some_and(|a| a == "finetune") {
        return finetune::run(&args[1..]);
    }
    let task = match flags::Xtask::from_vec(args) {
        Ok(flags) => flags.subcommand,
        Err(e) => e.exit(),
    };
    match task {
        flags::XtaskCmd::Ci(f) => ci::run(f.only.as_deref()),
        flags::XtaskCmd::Tidy(f) => tidy::run(f.write),
        flags::XtaskCmd::Supply(f) => supply::deny(f.offline),
        flags::XtaskCmd::Reproducible(f) => {
            let package = f.package.as_deref().unwrap_or("halfbyte-trainer");
            reproducible::run(&f.within, f.profile.as_deref().unwrap_or("release"), package)
        }
        flags::XtaskCmd::Finetune(f) => finetune::run(&f.args),
        flags::XtaskCmd::Pretrain(f) => pretrain::run(f.arch.as_deref()),
        flags::XtaskCmd::Bench(flags::Bench { model, data, python, rounds, large }) => {
            bench::run(&bench::Options { model, data, python, rounds: rounds.unwrap_or(3), large })
        }
        flags::XtaskCmd::Parity(flags::Parity { python, model, train, test }) => {
            parity::run(&parity::Options { python, model, train, test })
        }
        flags::XtaskCmd::Folders(flags::Folders { python, halfbyte, count, seed }) => {
            parity::folders::run(&python, halfbyte, count.unwrap_or(300), seed.unwrap_or(2))
        }
        flags::XtaskCmd::Chats(f) => chats::run(&f.python, &f.templates),
        flags::XtaskCmd::Arm(_) => arm::run(),
        flags::XtaskCmd::Bundle(f) => bundle::run(&f.output),
        flags::XtaskCmd::Kernels(f) => kernels::run(f.python.as_deref()),
        flags::XtaskCmd::Fixtures(f) => parity::fixtures(&f.python),
        flags::XtaskCmd::Synth(f) => {
            generator::synth(&f.like, if f.quantized { &["--quantized"] } else { &[] }, &f.output)
        }
        flags::XtaskCmd::Roofline(f) => roofline::run(&f),
        flags::XtaskCmd::Torture(f) => torture::run(f.minutes, f.seed.unwrap_or(1), f.only.as_deref()),
        flags::XtaskCmd::Fuzz(f) => torture::fuzz(f.minutes, f.seed.unwrap_or(1), f.only.as_deref(), f.coverage),
        flags::XtaskCmd::Tally(_) => torture::tally(),
        flags::XtaskCmd::PackageCheck(f) => package_check::run(f.only.as_deref()),
    }
}
