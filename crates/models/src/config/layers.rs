//! What differs from layer to layer: which see only a window of the keys, and which rotation is whose.

use super::keys::{Keys, Parsed};
use crate::LayerSpec;
use halfbyte_ops::rope::RopeSpec;
use serde_json::Value;

/// Which layers see only a window of the keys.
#[derive(Clone, Copy)]
pub(crate) enum Window {
    None,
    /// All of them, unless `sliding_window` is null; so many keys where it is absent, or none.
    Everywhere(Option<usize>),
    /// With `use_sliding_window`: those that `layer_types` names, or those from `max_window_layers` on.
    SomeLayers,
    /// Those that `layer_types` names, or all but every so-manieth, which `sliding_window_pattern` may say instead; of so many keys
    /// where the file does not say.
    AllBut(usize, usize),
    /// With `use_sliding_window`: those that `layer_types` names, or those that are not rotated.
    NotRotated,
    /// With `use_sliding_window` all of them.
    IfUsed,
}

/// How layers are rotated.
#[derive(Clone, Copy)]
pub(crate) enum Rotated {
    /// All alike.
    All,
    /// All but those of `no_rope_layers`, or every `no_rope_layer_interval`th.
    Some,
    /// Those with a window by another base than the others.
    ByWindow,
    /// All alike, as much of every head as `partial_rotary_factor` says, perhaps by longrope; with the original length of a file that does
    /// not name one.
    Part(usize),
    /// All alike; where the file does not say how, as gpt-oss is.
    Yarn,
}

/// The window of a file that does not name one.
pub(crate) const DEFAULT_WINDOW: usize = 4096;
/// The first layer with a window, of a file that does not name one.
const DEFAULT_WINDOW_LAYERS: usize = 28;
/// Every so-manieth layer is not rotated, in a file that does not say.
const DEFAULT_INTERVAL: usize = 4;

impl Keys<'_> {
    /// The rotations of a model, and what each of its layers has of windows and rotations; with what a user should know.
    /// `theta` is the base of a file that does not name one.
    pub(crate) fn layers(
        &self,
        (window, rotated): (Window, Rotated),
        layers: usize,
        (head_dim, positions, theta): (usize, usize, f64),
    ) -> Parsed<(Vec<RopeSpec>, Vec<LayerSpec>, Vec<String>)> {
        let (rotates, sizes) = (self.rotates(rotated, layers)?, (head_dim, positions));
        let windows = self.windows(window, &rotates)?;
        let (ropes, notes) = match rotated {
            Rotated::ByWindow => super::rope::by_window(self, sizes)?,
            Rotated::Part(original) => super::rope::of_part(self, sizes, (theta, original))?,
            Rotated::Yarn => super::rope::oss(self, sizes, theta).map(|(it, notes)| (vec![it], notes))?,
            _ => super::rope::spec(self, sizes, theta).map(|(it, notes)| (vec![it], notes))?,
        };
        let rope = |window: Option<usize>| usize::from(window.is_some() && ropes.len() > 1);
        let layer = |(window, rotates): (Option<usize>, bool)| LayerSpec {
            window,
            rope: rotates.then_some(rope(window)),
            sparse: false,
        };
        let all = windows.into_iter().zip(rotates).map(layer).collect();
        Ok((ropes, all, notes))
    }

    /// Whether each layer is rotated.
    fn rotates(&self, rotated: Rotated, layers: usize) -> Parsed<Vec<bool>> {
        if !matches!(rotated, Rotated::Some) {
            return Ok(vec![true; layers]);
        }
        let Some(listed) = self.given("no_rope_layers") else {
            let interval = self.size("no_rope_layer_interval", Some(DEFAULT_INTERVAL))?;
            if interval == 0 {
                return Err("no_rope_layer_interval is 0, expected a number of layers".into());
            }
            return Ok((1..=layers).map(|it| !it.is_multiple_of(interval)).collect());
        };
        // 1 says that a layer is rotated, whatever the name of the list.
        let of = |it: &Value| match it.as_u64() {
            Some(0) => Ok(false),
            Some(1) => Ok(true),
            _ => Err(format!(
                "no_rope_layers holds {it}, expected 1 for a layer that is rotated and 0 for one that is not"
            )),
        };
        let listed = listed.as_array().ok_or("no_rope_layers is not a list")?;
        if listed.len() < layers {
            return Err(format!("no_rope_layers describes {} layers, num_hidden_layers is {layers}", listed.len()));
        }
        listed.iter().take(layers).map(of).collect()
    }

    /// The window of every layer.
    fn windows(&self, window: Window, rotates: &[bool]) -> Parsed<Vec<Option<usize>>> {
        let layers = rotates.len();
        let chosen = matches!(window, Window::SomeLayers | Window::NotRotated | Window::IfUsed);
        let width = match window {
            Window::None => return Ok(vec![None; layers]),
            _ if chosen && !self.flag("use_sliding_window", false)? => None,
            _ if self.has("sliding_window") && self.given("sliding_window").is_none() => None,
            Window::NotRotated | Window::Everywhere(None) if !self.has("sliding_window") => None,
            Window::AllBut(_, width) => Some(self.size("sliding_window", Some(width))?),
            _ => Some(self.size("sliding_window", Some(DEFAULT_WINDOW))?),
        };
        if width == Some(0) {
            return Err("sliding_window is 0, with which a token would not even see itself".into());
        }
        let by_rule = self.by_rule((window, width), rotates)?;
        let listed = self.given("layer_types").filter(|_| !matches!(window, Window::IfUsed));
        let Some(kinds) = listed else { return Ok(by_rule) };
        let listed = listed_windows(kinds, layers, width)?;
        if matches!(window, Window::Everywhere(_)) && listed != by_rule {
            // transformers ignores the list here, so that the two readings differ.
            return Err(
                "layer_types and sliding_window contradict each other; in this architecture every layer has the window, or none"
                    .into(),
            );
        }
        Ok(listed)
    }

    /// The windows of a file without `layer_types`.
    fn by_rule(&self, (window, width): (Window, Option<usize>), rotates: &[bool]) -> Parsed<Vec<Option<usize>>> {
        let first = match window {
            Window::SomeLayers => self.size("max_window_layers", Some(DEFAULT_WINDOW_LAYERS))?,
            _ => 0,
        };
        let pattern = match window {
            Window::AllBut(default, _) => self.size("sliding_window_pattern", Some(default))?,
            _ => usize::MAX,
        };
        if pattern == 0 {
            return Err("sliding_window_pattern is 0, expected a number of layers".into());
        }
        if matches!(window, Window::AllBut(..)) && width.is_none() && self.given("layer_types").is_none() {
            return Err("sliding_window is null, but some layers of this architecture have a window".into());
        }
        let has = |it: usize| match window {
            Window::NotRotated => !rotates[it],
            _ => it >= first && !(it + 1).is_multiple_of(pattern),
        };
        Ok((0..rotates.len()).map(|it| width.filter(|_| has(it))).collect())
    }
}

/// The windows that `layer_types` describes.
fn listed_windows(kinds: &Value, layers: usize, width: Option<usize>) -> Parsed<Vec<Option<usize>>> {
    let kinds = kinds.as_array().ok_or("layer_types is not a list")?;
    if kinds.len() != layers {
        return Err(format!("layer_types describes {} layers, num_hidden_layers is {layers}", kinds.len()));
    }
    let of = |kind: &Value| match (kind.as_str(), width) {
        (Some("full_attention"), _) => Ok(None),
        (Some("sliding_attention"), Some(width)) => Ok(Some(width)),
        (Some("sliding_attention"), None) => {
            Err("layer_types asks for sliding_attention, but no sliding_window is in use".to_owned())
        }
        _ => Err(format!(
            "layer_types holds {kind}, which is not supported; supported are full_attention and sliding_attention"
        )),
    };
    kinds.iter().map(of).collect()
}
