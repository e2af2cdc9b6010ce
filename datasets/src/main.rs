//! Command line of the generator.

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use halfbyte_datasets::{SEED, corpus, generate, init, questions, synth, synth::Stored, table};
use std::io::Write;
use std::path::PathBuf;

#[derive(Parser)]
#[command(about = "Makes the embedded data sets, the pretraining corpus and the untrained base models")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Writes the committed parquet files, byte for byte
    Generate {
        /// Folder to write into
        #[arg(long)]
        output: PathBuf,
    },
    /// Writes corpus.parquet (column text), on which the base models are pretrained
    Corpus {
        /// Folder to write into
        #[arg(long)]
        output: PathBuf,
        /// Seed of the documents
        #[arg(long, default_value_t = SEED)]
        seed: u64,
        /// Number of documents
        #[arg(long, default_value_t = corpus::DOCUMENTS)]
        rows: usize,
        /// Joins documents with the end-of-text token into rows of at most this many bytes; 0 keeps one document a row
        #[arg(long, default_value_t = corpus::ROW_BYTES)]
        pack: usize,
    },
    /// Writes lessons.parquet (column text) and questions.parquet (columns instruction, input, output), the two stages
    /// of pretraining
    Questions {
        /// Folder to write into
        #[arg(long)]
        output: PathBuf,
        /// Seed of the questions
        #[arg(long, default_value_t = SEED)]
        seed: u64,
    },
    /// Writes a folder of a real model's shape with random weights, a tensor at a time
    Synth {
        /// llama-7b, llama-8b, llama-13b, llama-65b, mistral-7b, qwen2.5-7b, qwen3-8b, mixtral-8x7b, qwen3-30b-a3b, smollm2-135m or gpt-neo-1.3b
        #[arg(long)]
        like: String,
        /// In NF4 with double quantisation, as bitsandbytes saves it: a quarter of the disk
        #[arg(long)]
        quantized: bool,
        /// Headers and a hole instead of weights, for plans: no room on the disk
        #[arg(long, conflicts_with = "quantized")]
        headers: bool,
        /// The folder; it must be new or empty
        #[arg(long)]
        output: PathBuf,
    },
    /// Writes a Hugging Face folder with random weights
    Init {
        /// Architecture of the model
        #[arg(long)]
        arch: Arch,
        /// Folder to write into
        #[arg(long)]
        output: PathBuf,
        /// Seed of the weights
        #[arg(long, default_value_t = SEED)]
        seed: u64,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Arch {
    Llama,
    GptNeo,
}

fn main() -> Result<()> {
    let report = match Cli::parse().command {
        Command::Generate { output } => {
            generate(&output)?;
            format!("wrote the data sets to {}", output.display())
        }
        Command::Corpus { output, seed, rows, pack } => {
            std::fs::create_dir_all(&output)?;
            let path = output.join("corpus.parquet");
            table::write_texts(&path, corpus::packed(corpus::documents(seed, rows), pack))?;
            format!("wrote {rows} documents to {}", path.display())
        }
        Command::Questions { output, seed } => {
            std::fs::create_dir_all(&output)?;
            let (lessons, rows) = (output.join("lessons.parquet"), output.join("questions.parquet"));
            let documents = questions::documents(seed, questions::DOCUMENTS);
            table::write_texts(&lessons, corpus::packed(documents, corpus::ROW_BYTES))?;
            table::write_instructions(&rows, &questions::questions(seed, questions::QUESTIONS))?;
            format!("wrote {} and {}", lessons.display(), rows.display())
        }
        Command::Synth { like, quantized, headers, output } => {
            let stored = match (quantized, headers) {
                (true, _) => Stored::Quantized,
                (_, true) => Stored::Headers,
                _ => Stored::Dense,
            };
            let parameters = synth::write_like(&like, stored, &output)?;
            format!("{}: {:.3} billion parameters", output.display(), parameters as f64 * 1e-9)
        }
        Command::Init { arch, output, seed } => {
            let arch = match arch {
                Arch::Llama => init::Arch::Llama,
                Arch::GptNeo => init::Arch::GptNeo,
            };
            let parameters = init::write(arch, seed, &output)?;
            format!("wrote a model of {parameters} random parameters to {}", output.display())
        }
    };
    writeln!(std::io::stdout(), "{report}")?;
    Ok(())
}
