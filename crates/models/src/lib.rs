//! LLaMA, models built like it and the GPTs from Hugging Face folders, written once for dense, 4-bit, adapted, merged and fully trained weights.
//!
//! A model file holds the forward pass alone; the derivatives belong to the ops. Where its weights come from and how
//! they are kept is the business of a [`Weights`] provider.

mod block_spec;
mod cache;
mod config;
mod decoder;
mod error;
mod families;
mod folder;
mod generate;
mod gpt;
mod head;
mod kept;
mod mlp;
mod model;
mod names;
mod page_tables;
mod registry;
mod rehearse;
mod sampling;
mod save;
mod spec;
mod weights;

pub use block_spec::{Biases, BlockSpec, EmbeddingScale, ExpertNames, ExpertSpec, LayerSpec, Norms, QkNorm};
pub use cache::KvCache;
pub use config::{Architecture, CONFIG_KEYS, ModelConfig, QUANTIZATION_KEYS};
pub use decoder::Decoder;
pub use error::{Error, Result};
pub use folder::{ModelFolder, loaded_dtype};
pub use generate::{GenerateConfig, Generated, Heard, Listener, StopReason, extend, generate, generate_within, scores};
pub use gpt::{Gpt, GptKind, GptSpec};
pub use head::OutputHead;
pub use kept::KeptText;
pub use model::{Attend, Model, Pass};
pub use registry::{SUPPORTED, build};
pub use rehearse::{Rehearsed, rehearse};
pub use save::model_tensors;
pub use spec::{WeightSpec, spec};
pub use weights::{FolderWeights, Loading, Weights};
