use halfbyte_lora::{Adapter, Trained};
use halfbyte_models::Model;

/// What trains: the adapter, or where there is none the model. In the order of creation, which is that of everything that is
/// kept for the parameters.
pub fn parameters(model: &dyn Model, adapter: Option<&Adapter>) -> Vec<Trained> {
    if let Some(adapter) = adapter {
        return adapter.trained();
    }
    let (linears, weights) = model.parts();
    let mut all: Vec<Trained> = weights.iter().filter_map(|it| it.trained()).collect();
    all.extend(linears.iter().flat_map(|it| it.trained()));
    all.sort_by_key(|it| it.param.id());
    all
}
