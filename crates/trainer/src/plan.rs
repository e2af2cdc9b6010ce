//! The memory plan: what a run will hold, class by class, before it starts.

use crate::console::mib;
use halfbyte_frozen::Format;
use halfbyte_lora::{Adapter, Base, Role, Trained};
use halfbyte_models::{Architecture, Model, ModelConfig, ModelFolder, WeightSpec, spec};
use halfbyte_tensor::DType;
use halfbyte_train::{StateConfig, parameters};
use serde::Serialize;

/// What a step works on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Rows times tokens of the largest batch.
    pub(crate) rows: usize,
    pub(crate) compute: DType,
    pub(crate) checkpointing: bool,
}

/// Bytes of each class.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Plan {
    /// Frozen matrices as they are stored, scales included.
    pub(crate) frozen_matrices: usize,
    /// Embeddings, norms, biases and the output head, where they do not train.
    pub(crate) dense_weights: usize,
    /// What trains, in f32.
    pub(crate) trainable: usize,
    /// Its gradients, in f32.
    pub(crate) gradients: usize,
    /// The optimizer's state that is in memory.
    pub(crate) optimizer: usize,
    /// What the forward pass keeps for the backward pass.
    pub(crate) activations: usize,
    /// Logits of a chunk, gradients on their way, panels of products.
    pub(crate) workspace: usize,
    /// Token ids of the data sets.
    pub(crate) data: usize,
    /// The process itself: code, tokenizer, thread stacks, allocator.
    pub(crate) runtime: usize,
}

/// Measured on an idle process with a tokenizer of 49,152 entries loaded.
const RUNTIME_BYTES: usize = 72 << 20;
/// Logits in f32 and their gradient, and the workspace of products: see the cross-entropy op and the cuda crate.
const GPU_LOGITS_BYTES: usize = 64 << 20;
const GPU_BLAS_BYTES: usize = 32 << 20;
/// A strip of logits and of its gradient's weights; see the cross-entropy op.
const LOGITS_STRIP: (usize, usize) = (1008, 1536);

impl Plan {
    /// The plan for training an adapter beside `model`, or the model itself.
    pub(crate) fn new(model: &dyn Model, adapter: Option<&Adapter>, shape: Shape, optimizer: StateConfig) -> Plan {
        let (linears, weights) = model.parts();
        let mut plan = Plan { runtime: RUNTIME_BYTES, ..Plan::default() };
        let (mut trainable, mut state, mut rescaled) = (0, 0, 0);
        for linear in linears {
            if let Base::Frozen(matrix) = linear.base() {
                plan.frozen_matrices += matrix.bytes();
            }
            let update = adapter.and_then(|it| it.update(linear.path()));
            if update.is_some_and(|it| it.low_rank().is_none() && it.copy().is_none()) {
                // DoRA keeps the product before its rescaling, and perhaps the dropped-out input.
                let (out, inner) = linear.dims();
                rescaled += out + inner;
            }
            plan.dense_weights += linear.bias().filter(|it| it.param().is_none()).map_or(0, |it| it.value().bytes());
        }
        plan.dense_weights +=
            weights.iter().filter(|it| it.param().is_none()).map(|it| it.value().bytes()).sum::<usize>();
        for Trained { param, role } in parameters(model, adapter) {
            let len = param.value().len();
            trainable += len;
            state += optimizer.bytes(role, len);
            plan.gradients += second_gradient(model.config(), role, len);
        }
        plan.trainable = 4 * trainable;
        plan.gradients += 4 * trainable;
        plan.optimizer = optimizer.in_memory(state);
        let blocks = if shape.checkpointing { model.config().num_hidden_layers } else { 1 };
        plan.activations = activations(model.config(), shape) + shape.compute.size() * shape.rows * rescaled / blocks;
        plan.workspace = workspace(model.config(), shape);
        plan
    }

    /// What can be said before anything is loaded: the base as it will be kept, activations and workspace. What trains is
    /// small beside them, unless the whole model does.
    pub(crate) fn before_loading(
        folder: &ModelFolder,
        format: Format,
        trains: Option<StateConfig>,
        shape: Shape,
    ) -> halfbyte_models::Result<Plan> {
        let mut plan = Plan { runtime: RUNTIME_BYTES, ..Plan::default() };
        for WeightSpec { name, role, .. } in spec(folder.config())? {
            // One that is missing is the loader's to tell.
            let Some((_, info)) = folder.files().get(&name) else { continue };
            let elements = info.shape.iter().product::<usize>();
            match (role, &info.shape[..]) {
                _ if trains.is_some() => {
                    plan.trainable += 4 * elements;
                    plan.gradients += 4 * elements + second_gradient(folder.config(), role, elements);
                    plan.optimizer += trains.unwrap_or_default().bytes(role, elements);
                }
                (Role::Linear, [out, inner]) if DType::of_files(info.dtype).is_some_and(DType::is_float) => {
                    plan.frozen_matrices += format.bytes(*out, *inner, info.dtype.size());
                }
                // Of a checkpoint that is quantised already: codes and scales, as they lie there.
                (Role::Linear, _) => plan.frozen_matrices += elements * info.dtype.size() * 9 / 8,
                _ => plan.dense_weights += elements * info.dtype.size(),
            }
        }
        plan.activations = activations(folder.config(), shape);
        plan.workspace = workspace(folder.config(), shape);
        Ok(plan)
    }

    /// The same on a GPU, which decodes the largest matrix at a time and holds more logits, but no process.
    pub(crate) fn on_gpu(mut self, config: &ModelConfig, shape: Shape) -> Plan {
        let largest = config.hidden_size * config.intermediate_size.max(config.num_attention_heads * config.head_dim);
        let head = config.vocab_size * config.hidden_size;
        let passing = shape.rows * (3 * config.intermediate_size + 2 * config.hidden_size);
        let logits = (GPU_LOGITS_BYTES / 4 / config.vocab_size.max(1)).clamp(1, shape.rows.max(1)) * config.vocab_size;
        let in_compute = largest.max(head) + passing + logits;
        self.workspace = 4 * logits + shape.compute.size() * in_compute + GPU_BLAS_BYTES;
        self.runtime = 0;
        self
    }

    /// All classes together.
    pub(crate) fn total(&self) -> usize {
        self.classes().iter().map(|it| it.1).sum()
    }

    /// Lines for people.
    pub(crate) fn lines(&self) -> Vec<String> {
        let line = |name: &str, bytes: usize| format!("  {name:<22} {:>12}", mib(bytes));
        let mut lines: Vec<String> = self.classes().iter().filter(|it| it.1 > 0).map(|it| line(it.0, it.1)).collect();
        lines.push(line("planned in all", self.total()));
        lines
    }

    fn classes(&self) -> [(&'static str, usize); 9] {
        [
            ("frozen matrices", self.frozen_matrices),
            ("dense weights", self.dense_weights),
            ("trainable weights", self.trainable),
            ("gradients", self.gradients),
            ("optimizer state", self.optimizer),
            ("activations", self.activations),
            ("workspace", self.workspace),
            ("data", self.data),
            ("runtime", self.runtime),
        ]
    }
}

/// Channels that a block keeps for every token, in the compute dtype.
fn kept_channels(config: &ModelConfig) -> usize {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
    // Both norms' inputs; q, k, v and the attention's output; then the MLP's own. Outputs of norms and of activation
    // functions are computed again.
    let attention = 2 * hidden + 2 * q + 2 * kv;
    match config.architecture {
        // gate and up.
        Architecture::Decoder(_) => attention + 2 * inner,
        Architecture::GptNeo { .. } => attention + inner,
    }
}

fn activations(config: &ModelConfig, shape: Shape) -> usize {
    let row = shape.compute.size() * shape.rows;
    let block = row * kept_channels(config);
    if shape.checkpointing {
        config.num_hidden_layers * row * config.hidden_size + block
    } else {
        config.num_hidden_layers * block
    }
}

/// An embedding that is the output head, too, gets a gradient from either, and both are there until they are added up.
fn second_gradient(config: &ModelConfig, role: Role, len: usize) -> usize {
    if config.tie_word_embeddings && role == Role::Embedding { 4 * len } else { 0 }
}

fn workspace(config: &ModelConfig, shape: Shape) -> usize {
    let rows = LOGITS_STRIP.0.min(shape.rows);
    let logits = rows * ((4 + shape.compute.size()) * LOGITS_STRIP.1 + 4 * config.hidden_size);
    // The gradient of the widest activation, its operands, and the hidden states' gradient.
    let passing = shape.compute.size() * shape.rows * (3 * config.intermediate_size + 2 * config.hidden_size);
    logits + passing
}

/// Bytes that can be used without swapping, where the system tells (Linux).
pub(crate) fn available_memory() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|it| it.starts_with("MemAvailable:"))?;
    let kib: usize = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
