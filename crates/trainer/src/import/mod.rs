//! `halfbyte import-config`: the settings files of axolotl, LLaMA-Factory and TRL, as `finetune --config` reads them. Most keys are
//! flags, and go the way of other programs' flags; what is said in tables and lists, such as data sets, is read here. Whatever is not
//! taken is named, with why.

mod data_sets;
mod defaults;
#[cfg(test)]
mod parsers;
mod yaml;

use crate::{
    console,
    failure::user_error,
    finetune::FinetuneArgs,
    spellings::{self, Ours, Translated},
};
use clap::{Args, CommandFactory, FromArgMatches, Parser};
use serde_json::{Map, Value};
use std::{
    ffi::OsString,
    fmt::Write as _,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};
use yaml::{is_nothing, scalar};

/// `halfbyte import-config`.
#[derive(Args, Debug)]
pub struct ImportConfigArgs {
    /// A settings file of axolotl, LLaMA-Factory or TRL (YAML).
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Write the settings there instead of to standard output.
    #[arg(long, value_name = "FILE.toml")]
    pub output: Option<PathBuf>,
    /// Replace the file that --output names.
    #[arg(long, requires = "output")]
    pub overwrite: bool,
}

/// Runs the command.
pub(crate) fn import_config(args: &ImportConfigArgs) -> anyhow::Result<()> {
    if let Some(output) = &args.output {
        check_output(args, output)?;
    }
    let imported = Import::of(&args.file)?;
    for (key, why) in &imported.left_out {
        console::warn(&format!("{key}: {why}"));
    }
    let text = imported.toml(&args.file)?;
    match &args.output {
        None => Ok(std::io::stdout().lock().write_all(text.as_bytes())?),
        Some(path) => {
            halfbyte_files::write_atomic(path, text.as_bytes())?;
            console::say(&format!("written; now: halfbyte finetune --config {}", path.display()));
            Ok(())
        }
    }
}

/// Refuses a file that is there already, and the one that is read whatever the flags.
fn check_output(args: &ImportConfigArgs, output: &Path) -> anyhow::Result<()> {
    let Ok(place) = output.canonicalize() else { return Ok(()) };
    let refuse = |why: &str| Err(user_error(format!("{}: {why}", output.display())));
    if args.file.canonicalize().is_ok_and(|it| it == place) {
        return refuse("--output would replace the file that is being read; name another file");
    }
    if place.is_dir() {
        return refuse("--output is a folder; name a file");
    }
    if !args.overwrite {
        return refuse("exists; --overwrite replaces it");
    }
    Ok(())
}

/// Whose file it is; they differ in how they name data sets, and in what trains where nothing is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Axolotl,
    LlamaFactory,
    Trl,
}

impl Program {
    fn of(keys: &Map<String, Value>) -> Program {
        let has = |name: &str| keys.contains_key(name);
        let theirs = ["stage", "finetuning_type", "template", "dataset", "dataset_dir", "cutoff_len"];
        if has("base_model") {
            Program::Axolotl
        } else if theirs.into_iter().any(has) {
            Program::LlamaFactory
        } else {
            Program::Trl
        }
    }

    fn name(self) -> &'static str {
        match self {
            Program::Axolotl => "axolotl",
            Program::LlamaFactory => "LLaMA-Factory",
            Program::Trl => "TRL",
        }
    }
}

/// Reads flags without the rest of the command.
#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    args: FinetuneArgs,
}

impl Flags {
    /// The parser, which is put together of a hundred flags once and not for every key of a file.
    fn parser() -> MutexGuard<'static, clap::Command> {
        static PARSER: LazyLock<Mutex<clap::Command>> = LazyLock::new(|| Mutex::new(Flags::command()));
        PARSER.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<'f>(flags: impl IntoIterator<Item = &'f OsString>) -> Result<FinetuneArgs, String> {
        let line = [OsString::from("finetune")].into_iter().chain(flags.into_iter().cloned());
        let matches = Flags::parser().try_get_matches_from_mut(line);
        matches.and_then(|it| Flags::from_arg_matches(&it)).map(|it| it.args).map_err(|error| {
            // What clap says after the first lines is about the command line.
            let text = error.to_string();
            let said: Vec<&str> = text
                .lines()
                .map(str::trim)
                .take_while(|it| !["For more", "Usage", "tip:"].iter().any(|end| it.starts_with(end)))
                .collect();
            said.join(" ").trim_start_matches("error: ").trim().to_owned()
        })
    }
}

/// Settings on their way from one program to the other.
struct Import {
    program: Program,
    ours: Ours,
    /// How many data sets there are to train on.
    sets: usize,
    /// What the file does not say and the other program does.
    filled_in: Vec<String>,
    /// Keys that mean nothing here and need not.
    idle: Vec<String>,
    /// Keys that were not taken, and why.
    left_out: Vec<(String, String)>,
}

/// How the names of keys begin by which runs are reported to others, or that choose kernels there.
const IDLE: [&str; 7] = ["wandb_", "trackio_", "swanlab_", "mlflow_", "comet_", "liger_", "unsloth_"];

impl Import {
    fn of(file: &Path) -> anyhow::Result<Import> {
        let keys = yaml::read(file)?;
        let program = Program::of(&keys);
        let mut import = Import {
            program,
            ours: Ours::default(),
            sets: 0,
            filled_in: Vec::new(),
            idle: Vec::new(),
            left_out: Vec::new(),
        };
        refuse_other_objectives(&keys, file)?;
        data_sets::take(&mut import, &keys, file)?;
        for (key, value) in &keys {
            if !is_nothing(value) && !data_sets::KEYS.contains(&key.as_str()) {
                import.key(key, value, &keys);
            }
        }
        let trains_an_adapter = match program {
            Program::Axolotl => keys.get("adapter").is_some_and(|it| !is_nothing(it)),
            Program::LlamaFactory => keys.get("finetuning_type").is_none_or(|it| it != "full"),
            Program::Trl => keys.get("use_peft") == Some(&Value::Bool(true)),
        };
        if !trains_an_adapter && !import.ours.flags.iter().any(|it| it == "--method") {
            import.ours.take(vec!["--method".into(), "full".into()]);
        } else if program == Program::LlamaFactory && !keys.contains_key("finetuning_type") {
            import.flag("finetuning_type", Some("lora".to_owned()));
        }
        defaults::fill_in(&mut import, &keys, trains_an_adapter);
        Ok(import)
    }

    fn key(&mut self, key: &str, value: &Value, keys: &Map<String, Value>) {
        match (key, value) {
            // Read together with chat_template.
            ("chat_template_jinja", _) => {}
            ("special_tokens", Value::Object(tokens)) => {
                for (name, token) in tokens.iter().filter(|it| it.0 != "pad_token" && !is_nothing(it.1)) {
                    self.leave_out(
                        &format!("special_tokens.{name}"),
                        &format!("{token} is not set here; the model's tokens are taken"),
                    );
                }
            }
            ("chat_template", Value::String(name)) => self.chat_template(name, keys),
            ("lr_scheduler", _) if keys.get("cosine_min_lr_ratio").is_some_and(|it| !is_nothing(it)) => {}
            ("cosine_min_lr_ratio", Value::Number(rate)) => {
                self.flag("lr_scheduler_type", Some("cosine_with_min_lr".to_owned()));
                self.flag("lr_scheduler_kwargs", Some(format!("{{\"min_lr_rate\": {rate}}}")));
            }
            // Together with all linear layers its list says nothing more.
            ("lora_target_modules", _) if keys.get("lora_target_linear") == Some(&Value::Bool(true)) => {}
            ("batch_size", _) if self.program == Program::Axolotl => self.global_batch_size(value, keys),
            ("max_samples", _) if self.sets > 1 => {
                self.leave_out(key, "is of each data set there; --rows counts through all of them, so name fewer");
            }
            ("plugins", Value::Array(items)) if items.iter().all(only_speeds_up) => self.idle.push(key.to_owned()),
            ("val_set_size" | "val_size", Value::Number(share)) if share.as_f64() == Some(0.0) => {}
            ("lr_scheduler_kwargs" | "chat_template_kwargs", Value::Object(_)) => {
                self.flag(key, Some(value.to_string()))
            }
            (_, Value::Object(_)) if spellings::is_known(&key.replace('_', "-")) => self.flag(key, None),
            (_, Value::Object(_)) => self.leave_out(key, "is a table, and not known here"),
            (_, Value::Array(items)) => match items.iter().map(scalar).collect::<Option<Vec<_>>>() {
                Some(items) => self.flag(key, Some(items.join(","))),
                None => self.leave_out(key, "is a list of tables, and not known here"),
            },
            _ => self.flag(key, scalar(value)),
        }
    }

    /// axolotl's `batch_size` is what comes together in a step.
    fn global_batch_size(&mut self, value: &Value, keys: &Map<String, Value>) {
        let micro = keys.get("micro_batch_size").and_then(Value::as_u64).filter(|it| *it > 0);
        match (value.as_u64(), micro, keys.get("gradient_accumulation_steps").is_none_or(is_nothing)) {
            (Some(all), Some(micro), true) => {
                self.flag("gradient_accumulation_steps", Some((all / micro).max(1).to_string()));
            }
            _ => {
                self.leave_out("batch_size", "micro_batch_size and gradient_accumulation_steps say how large a step is")
            }
        }
    }

    fn chat_template(&mut self, name: &str, keys: &Map<String, Value>) {
        match name {
            // The model's own is what is taken anyway.
            "tokenizer_default" => {}
            "chatml" => self.flag("chat_template", Some(name.to_owned())),
            _ if name.starts_with("tokenizer_default_fallback_") => {}
            "jinja" if keys.contains_key("chat_template_jinja") => self.leave_out(
                "chat_template_jinja",
                "a template within the file; write it into a file of its own and name that with chat_template",
            ),
            _ if Path::new(name).exists() => self.flag("chat_template", Some(name.to_owned())),
            _ => self.leave_out(
                "chat_template",
                &format!(
                    "{name} is a template of axolotl's own; the model's is taken, or a file's: chat_template = \"FILE\""
                ),
            ),
        }
    }

    /// Takes a key with a single value as the flag that it is.
    fn flag(&mut self, key: &str, value: Option<String>) {
        let name = key.replace('_', "-");
        if IDLE.iter().any(|it| key.starts_with(it)) {
            self.idle.push(key.to_owned());
            return;
        }
        let flags = if spellings::is_known(&name) {
            match spellings::translated(&name, value.clone().map(OsString::from)) {
                Translated::Ours(flags) => flags,
                Translated::Anyway => return self.idle.push(key.to_owned()),
                Translated::Answer(words) => return self.leave_out(key, words.trim_start_matches([':', ' '])),
            }
        } else {
            match (our_flag(&name), value.as_deref()) {
                (None, _) => return self.leave_out(key, "is not known here"),
                // A flag without a value is on or not there.
                (Some(false), Some("false")) => return,
                (Some(false), Some("true")) => vec![format!("--{name}").into()],
                (_, value) => {
                    [format!("--{name}")].into_iter().chain(value.map(str::to_owned)).map(OsString::from).collect()
                }
            }
        };
        match Flags::read(&flags) {
            Ok(_) => self.ours.take(flags),
            Err(why) => self.leave_out(key, &why),
        }
    }

    /// A setting that the other program has where the file does not say it.
    fn fill_in(&mut self, key: &str, value: &str) {
        self.flag(key, Some(value.to_owned()));
        self.filled_in.push(format!("{key}: {value}"));
    }

    fn leave_out(&mut self, key: &str, why: &str) {
        self.left_out.push((key.to_owned(), why.to_owned()));
    }

    /// The file that `--config` reads.
    fn toml(self, from: &Path) -> anyhow::Result<String> {
        let (program, left_out, idle) = (self.program.name(), self.left_out, self.idle);
        let filled_in = self.filled_in;
        let args = Flags::read(&self.ours.finish())
            .map_err(|why| user_error(format!("{}: its settings contradict each other here: {why}", from.display())))?;
        let mut text = format!("# From {program}'s {}, by halfbyte import-config.\n", from.display());
        if !left_out.is_empty() {
            text += "#\n# Not taken:\n";
        }
        for (key, why) in &left_out {
            writeln!(text, "# - {key}: {}", why.replace('\n', " "))?;
        }
        if !filled_in.is_empty() {
            writeln!(text, "#\n# {program}'s defaults, written out: {}", filled_in.join(", "))?;
        }
        if !idle.is_empty() {
            writeln!(text, "#\n# Of no effect here: {}", idle.join(", "))?;
        }
        Ok(text + "\n" + &toml::to_string(&args)?)
    }
}

/// Whether a plugin of axolotl's only brings faster kernels.
fn only_speeds_up(plugin: &Value) -> bool {
    plugin.as_str().is_some_and(|it| it.contains("liger") || it.contains("cut_cross_entropy"))
}

/// Whether `finetune` has a flag of this name, and whether that takes a value.
fn our_flag(name: &str) -> Option<bool> {
    let named =
        |it: &&clap::Arg| it.get_long() == Some(name) || it.get_all_aliases().is_some_and(|it| it.contains(&name));
    Flags::parser().get_arguments().find(named).map(|it| it.get_action().takes_values())
}

/// What trains on something else than texts is not made into a training on texts in silence.
fn refuse_other_objectives(keys: &Map<String, Value>, file: &Path) -> anyhow::Result<()> {
    let other = |(key, value): &(&String, &Value)| match key.as_str() {
        "rl" => !is_nothing(value),
        "stage" => !["sft", "pt"].contains(&value.as_str().unwrap_or_default()),
        "reward_model" | "process_reward_model" => **value == Value::Bool(true),
        _ => false,
    };
    match keys.iter().find(other) {
        None => Ok(()),
        Some((key, value)) => Err(user_error(format!(
            "{}: {key}: {} trains on preferences or rewards; halfbyte fine-tunes on texts and conversations alone (SFT)",
            file.display(),
            scalar(value).unwrap_or_default()
        ))),
    }
}
