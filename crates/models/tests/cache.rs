//! What a cache gives is what the whole sequence gives, token by token and among other texts: in every architecture.

use halfbyte_autograd::Tape;
use halfbyte_lora::{Base, Context, Linear, LoraConfig, Role, Weight, attach};
use halfbyte_matmul::{Dense, Source};
use halfbyte_models::{
    Attend, GenerateConfig, Generated, Heard, KeptText, KvCache, Model, ModelConfig, Pass, Result, StopReason, Weights,
    build, extend, generate, generate_within,
};
use halfbyte_ops::{FrozenMatrix, Ids, Layout, cross_entropy::logits};
use halfbyte_tensor::{DType, Tensor};
use halfbyte_testkit::{noise, noise_in};
use serde_json::{Value, json};
use std::{path::Path, sync::Arc};

#[derive(Debug)]
struct Matrix(Tensor);

impl FrozenMatrix for Matrix {
    fn dims(&self) -> (usize, usize) {
        (self.0.shape()[0], self.0.shape()[1])
    }

    fn source<'a>(&'a self) -> Box<dyn Source + 'a> {
        let (out, inner) = self.dims();
        Box::new(Dense::new(out, inner, self.0.data::<f32>()))
    }

    fn bytes(&self) -> usize {
        self.0.bytes()
    }

    fn format(&self) -> String {
        "f32".into()
    }
}

/// Weights from noise.
struct Noise(u64);

impl Noise {
    fn next(&mut self, shape: &[usize]) -> Tensor {
        self.0 += 1;
        noise_in(shape, DType::F32, self.0, -0.4, 0.4)
    }
}

impl Weights for Noise {
    fn linear(&mut self, path: &str, dims: (usize, usize), bias: bool) -> Result<Linear> {
        let base = Base::Frozen(Arc::new(Matrix(self.next(&[dims.0, dims.1]))));
        let bias = bias.then(|| Weight::frozen(format!("{path}.bias"), Role::Bias, self.next(&[dims.0])));
        Ok(Linear::new(path, base, bias))
    }

    fn weight(&mut self, name: &str, shape: &[usize], role: Role) -> Result<Weight> {
        let spread = if role == Role::Norm { noise(shape, DType::F32, 5) } else { self.next(shape) };
        Ok(Weight::frozen(name, role, spread))
    }

    fn head(&mut self, path: &str, dims: (usize, usize)) -> Result<Linear> {
        Ok(Linear::head(path, Base::Frozen(Arc::new(Matrix(self.next(&[dims.0, dims.1]))))))
    }
}

const VOCAB: usize = 50;

fn configs() -> Vec<Value> {
    let decoder = |name: &str, more: Value| {
        let mut config = json!({
            "architectures": [name], "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 700,
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    vec![
        decoder("LlamaForCausalLM", json!({})),
        decoder("MistralForCausalLM", json!({ "sliding_window": 20 })),
        decoder("Qwen2ForCausalLM", json!({ "use_sliding_window": true, "sliding_window": 9, "max_window_layers": 1 })),
        decoder("Qwen3ForCausalLM", json!({ "head_dim": 12 })),
        decoder(
            "SmolLM3ForCausalLM",
            json!({ "use_sliding_window": true, "sliding_window": 9, "no_rope_layer_interval": 2 }),
        ),
        decoder("Olmo2ForCausalLM", json!({})),
        decoder("Gemma2ForCausalLM", json!({ "head_dim": 12, "sliding_window": 9, "attn_logit_softcapping": 1.0 })),
        decoder("Phi3ForCausalLM", json!({ "partial_rotary_factor": 0.5, "sliding_window": 9 })),
        decoder("Gemma3ForCausalLM", json!({ "head_dim": 12, "sliding_window": 9, "sliding_window_pattern": 2 })),
        json!({
            "architectures": ["GPTNeoXForCausalLM"], "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 700, "rotary_pct": 0.5,
        }),
        json!({
            "architectures": ["GPT2LMHeadModel"], "vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 700,
        }),
        json!({
            "architectures": ["GPTNeoForCausalLM"], "vocab_size": VOCAB, "hidden_size": 32, "num_layers": 2, "num_heads": 4,
            "attention_types": [[["global", "local"], 1]], "window_size": 9, "max_position_embeddings": 700,
        }),
    ]
}

fn model(config: &Value) -> Box<dyn Model> {
    build(&ModelConfig::parse(Path::new("config.json"), &config.to_string()).unwrap(), &mut Noise(1)).unwrap()
}

fn text(length: usize, seed: u32) -> Vec<u32> {
    (0..length as u32).map(|it| (it * it + seed * (it + 3)) % VOCAB as u32).collect()
}

/// Hidden states of one sequence without a cache.
fn whole(model: &dyn Model, ids: &[u32]) -> Vec<f32> {
    let (ids, layout, ctx) = (Ids::new(ids.to_vec()), Layout::new(&[ids.len()]).unwrap(), Context::default());
    let (attend, compute) = (Attend::Segments, DType::F32);
    let mut pass = Pass { attend, ..Pass::new(&ids, &layout, &ctx, compute) };
    model.forward(&Tape::disabled(), &mut pass).unwrap().into_value().to_f32_vec()
}

/// Hidden states of the next tokens of every sequence, one sequence after the other.
fn next(model: &dyn Model, cache: &mut KvCache, parts: &[&[u32]]) -> Vec<f32> {
    let layout = cache.begin(&parts.iter().map(|it| it.len()).collect::<Vec<_>>()).unwrap();
    let ids = Ids::new(parts.concat());
    extend(model, &ids, &layout, cache, &Context::default()).unwrap().to_f32_vec()
}

fn close(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0f32, |m, it| m.max(it.abs()));
    let worst = got.iter().zip(expected).fold(0f32, |m, (g, e)| m.max((g - e).abs()));
    assert!(worst <= 2e-5 * largest, "{what}: {worst} of {largest}");
}

#[test]
fn the_cache_gives_the_hidden_states_of_the_whole_sequence() {
    for config in configs() {
        let model = model(&config);
        let ids = text(200, 3);
        let expected = whole(model.as_ref(), &ids);
        let mut cache = KvCache::new(model.config(), DType::F32, 1);
        let mut got = next(model.as_ref(), &mut cache, &[&ids[..30]]);
        for piece in [30..31, 31..35, 35..90] {
            got.extend(next(model.as_ref(), &mut cache, &[&ids[piece]]));
        }
        for id in ids[90..].chunks(1) {
            got.extend(next(model.as_ref(), &mut cache, &[id]));
        }
        assert_eq!(cache.lengths(), [200]);
        close(&config.to_string(), &got, &expected);
    }
}

#[test]
fn sequences_of_one_cache_do_not_see_each_other() {
    for config in configs() {
        let model = model(&config);
        let texts = [text(90, 1), text(7, 2), text(41, 3)];
        let mut cache = KvCache::new(model.config(), DType::F32, 3);
        let mut got = vec![Vec::new(); 3];
        // Of unequal lengths, and not all in every pass.
        for ends in [[40, 7, 1], [40, 7, 41], [90, 7, 41]] {
            let starts = cache.lengths().to_vec();
            let parts: Vec<&[u32]> = (0..3).map(|it| &texts[it][starts[it]..ends[it]]).collect();
            let mut hidden = next(model.as_ref(), &mut cache, &parts);
            for (got, part) in got.iter_mut().zip(&parts) {
                got.extend(hidden.drain(..part.len() * 32));
            }
        }
        for (got, text) in got.iter().zip(&texts) {
            close(&config.to_string(), got, &whole(model.as_ref(), text));
        }
        // The first goes on three times, once with what it really said, and the second leaves.
        let mut cache = cache.fork(&[0, 2, 0, 0]);
        cache.retain(&[true, false, true, true]);
        let more = text(30, 9);
        for part in more.chunks(3) {
            let hidden = next(model.as_ref(), &mut cache, &[part, &part[..1], part]);
            assert_eq!(hidden.len(), 7 * 32);
        }
        let last = next(model.as_ref(), &mut cache, &[&[1], &[1], &[1]]);
        let of = |more: Vec<u32>| {
            let all = whole(model.as_ref(), &[&texts[0][..], &more, &[1]].concat());
            all[all.len() - 32..].to_vec()
        };
        close("a fork", &last[..32], &of(more.clone()));
        close("another", &last[32..64], &of(more.chunks(3).map(|it| it[0]).collect()));
        close("a third", &last[64..], &of(more.clone()));
    }
}

/// Tokens that a cache has room for in every layer, of two with 16 channels of keys and of values.
fn room(cache: &KvCache) -> usize {
    cache.bytes() / (2 * 2 * 16 * 4)
}

#[test]
fn a_text_holds_the_pages_that_it_needs_and_a_window_bounds_them() {
    let held = |config: &Value, step: usize| {
        let model = model(config);
        let mut cache = KvCache::new(model.config(), DType::F32, 1);
        text(600, 1).chunks(step).for_each(|it| drop(next(model.as_ref(), &mut cache, &[it])));
        room(&cache)
    };
    let [all, window] = [0, 1].map(|it| configs()[it].clone());
    assert_eq!([1, 50].map(|step| held(&all, step)), [640; 2], "ten pages of 64 tokens");
    // Of 20 tokens, which lie in two pages at most; of a part of the prompt with them, in three.
    assert_eq!([1, 50].map(|step| held(&window, step)), [2 * 64, 3 * 64]);
    // In one of two layers.
    assert_eq!(held(&configs()[2], 1), (640 + 2 * 64) / 2);
}

#[test]
fn a_text_that_comes_takes_the_pages_of_one_that_went() {
    let model = model(&configs()[0]);
    let mut cache = KvCache::new(model.config(), DType::F32, 3);
    let texts = [1, 2, 3].map(|it| text(100 + it as usize, it));
    next(model.as_ref(), &mut cache, &[&texts[0], &texts[1], &texts[2]]);
    assert_eq!(room(&cache), 6 * 64);
    for round in 4..20 {
        // The first goes, another comes, and those that stay do not notice.
        let coming = text(90 + 2 * round as usize, round);
        cache.retain(&[false, true, true]);
        cache.admit();
        let hidden = next(model.as_ref(), &mut cache, &[&[], &[], &coming]);
        close("who came", &hidden, &whole(model.as_ref(), &coming));
        assert_eq!(room(&cache), 6 * 64, "round {round}");
        assert!(cache.truncate(100));
    }
    // What goes back of a text is for others as well.
    cache.retain(&[false, true, true]);
    assert!(cache.truncate(60));
    cache.admit();
    next(model.as_ref(), &mut cache, &[&[], &[], &text(4 * 64, 1)]);
    assert_eq!(room(&cache), 6 * 64);
}

/// Bits, not closeness: what is shared is the same memory, and what is not is a copy.
#[test]
fn those_that_begin_alike_share_pages_and_go_on_as_if_alone() {
    for config in configs() {
        let model = model(&config);
        let (beginning, ends) = (text(150, 1), [2, 3, 4].map(|it| text(30, it)));
        let mut shared = KvCache::new(model.config(), DType::F32, 1);
        next(model.as_ref(), &mut shared, &[&beginning]);
        let before = shared.bytes();
        let mut shared = shared.fork(&[0, 0, 0]);
        assert_eq!(shared.bytes(), before);
        let mut alone = KvCache::new(model.config(), DType::F32, 3);
        next(model.as_ref(), &mut alone, &[&beginning, &beginning, &beginning]);
        for at in 0..30 {
            let step = ends.each_ref().map(|it| &it[at..=at]);
            let [got, expected] = [&mut shared, &mut alone].map(|it| next(model.as_ref(), it, &step));
            assert_eq!(got, expected, "{config}, token {at}");
        }
        // Of three pages the last is each one's own.
        assert!(shared.bytes() <= before / 3 * 5, "{} bytes, of one {before}", shared.bytes());
        // Forked again in the middle of a page that is shared still, and cut back into one.
        let mut again = shared.fork(&[2, 2]);
        if again.truncate(140) {
            let parts = [&ends[0][..5], &ends[1][..5]];
            let hidden = next(model.as_ref(), &mut again, &parts);
            for (hidden, part) in hidden.chunks(5 * 32).zip(parts) {
                let all = whole(model.as_ref(), &[&beginning[..140], part].concat());
                close(&config.to_string(), hidden, &all[140 * 32..]);
            }
        }
    }
}

#[test]
fn prompts_of_unequal_lengths_are_continued_as_each_alone() {
    for config in configs() {
        let model = model(&config);
        // The first is longer than one pass takes.
        let prompts = [text(530, 1), text(1, 2), text(77, 3), text(4, 5)];
        let config = GenerateConfig { max_new_tokens: 20, ..GenerateConfig::default() };
        let run = |prompts: &[Vec<u32>]| {
            generate(model.as_ref(), prompts, (&config, &Context::default()), &mut |_, _| true).unwrap()
        };
        let together = run(&prompts);
        let alone: Vec<_> = prompts.iter().flat_map(|it| run(std::slice::from_ref(it))).collect();
        assert_eq!(together, alone);
        assert!(together.iter().all(|it| it.ids.len() == 20 && it.stop == StopReason::MaxNewTokens));
        // One ends early, and the others do not notice.
        let eos = together[2].ids[3];
        let config = GenerateConfig { eos_token_ids: vec![eos], ..config.clone() };
        let ended = generate(model.as_ref(), &prompts, (&config, &Context::default()), &mut |_, _| true).unwrap();
        for (ended, all) in ended.iter().zip(&together) {
            let end = all.ids.iter().position(|it| *it == eos).unwrap_or(20);
            assert_eq!(ended.ids, all.ids[..end]);
        }
    }
}

#[test]
fn texts_that_take_the_places_of_those_that_ended_are_continued_as_each_alone() {
    // One rotates all positions otherwise from some length on, which a text beside it must not feel.
    let mut long = configs()[7].clone();
    let factors = |value: f64| vec![value; 2];
    let scaling = json!({ "type": "longrope", "short_factor": factors(1.0), "long_factor": factors(3.0) });
    let more = json!({ "original_max_position_embeddings": 40, "rope_scaling": scaling });
    long.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    for config in configs().into_iter().chain([long]) {
        let model = model(&config);
        // More than one pass reads, and two of one token.
        let prompts: Vec<Vec<u32>> = [530, 1, 77, 4, 560, 1, 540, 33, 555].map(|it| text(it, it as u32)).to_vec();
        let ctx = Context::default();
        let config = GenerateConfig { max_new_tokens: 9, temperature: 1.5, ..GenerateConfig::default() };
        let alone = |at: usize, config: &GenerateConfig| {
            let config = GenerateConfig { first_number: at, ..config.clone() };
            generate(model.as_ref(), &prompts[at..=at], (&config, &ctx), &mut |_, _| true).unwrap().remove(0)
        };
        // Of the first, so that the places become free at different times.
        let eos = alone(0, &config).ids[4];
        let config = GenerateConfig { eos_token_ids: vec![eos], ..config };
        let expected: Vec<Generated> = (0..prompts.len()).map(|it| alone(it, &config)).collect();
        for together in [2, 6] {
            let (mut live, mut most, mut ended) = (vec![], 0, vec![]);
            let found = generate_within(model.as_ref(), &prompts, together, (&config, &ctx), &mut |at, heard| {
                match heard {
                    Heard::Token(_) if !live.contains(&at) => live.push(at),
                    Heard::Token(_) => {}
                    Heard::Ended(it) => {
                        live.retain(|it| *it != at);
                        ended.push((at, it.clone()));
                    }
                }
                most = most.max(live.len());
                true
            })
            .unwrap();
            assert_eq!(found, expected, "{together} together");
            assert!(most <= together, "{most} instead of {together}");
            ended.sort_by_key(|it| it.0);
            assert!(ended.iter().map(|it| &it.1).eq(&expected), "each end is told once");
        }
    }
}

#[test]
fn a_listener_that_has_enough_lets_no_other_text_begin() {
    let model = model(&configs()[0]);
    let config = GenerateConfig { max_new_tokens: 3, ..GenerateConfig::default() };
    let prompts = vec![text(4, 1); 5];
    let mut told = 0;
    let found = generate_within(model.as_ref(), &prompts, 2, (&config, &Context::default()), &mut |_, heard| {
        told += 1;
        matches!(heard, Heard::Token(_))
    })
    .unwrap();
    assert_eq!(found.iter().map(|it| it.ids.len()).collect::<Vec<_>>(), [3, 3, 0, 0, 0]);
    assert_eq!((told, found[4].stop), (2 * 3 + 2, StopReason::Caller));
}

#[test]
fn prompts_with_adapters_of_their_own_are_continued_as_each_alone() {
    for config in configs() {
        let mut model = model(&config);
        let adapters = ["one", "two"].map(|name| {
            // A norm, or the whole embedding, which in GPT-Neo and GPT-2 is the head, too.
            let [norm, embedding] = match config["architectures"][0].as_str().unwrap() {
                "GPTNeoForCausalLM" | "GPT2LMHeadModel" => ["ln_2", "wte"],
                "GPTNeoXForCausalLM" => ["post_attention_layernorm", "embed_in"],
                _ => ["post_attention_layernorm", "embed_tokens"],
            };
            let saved = vec![if name == "one" { norm } else { embedding }.to_owned()];
            let config = LoraConfig { rank: 2, modules_to_save: saved, ..LoraConfig::default() };
            let (adapter, _) = attach(&model.modules(), &config, name, 3).unwrap();
            for (i, param) in adapter.params().into_iter().enumerate() {
                let change = noise_in(param.value().shape(), DType::F32, 90 + i as u64 + name.len() as u64, -0.5, 0.5);
                param.update(|value| {
                    value.data_mut::<f32>().iter_mut().zip(change.data::<f32>()).for_each(|(x, d)| *x += d)
                });
            }
            Arc::new(adapter)
        });
        let prompts = [text(21, 1), text(1, 2), text(77, 3), text(4, 5)];
        let chosen = [Some(1), None, Some(0), Some(1)];
        let config = GenerateConfig { max_new_tokens: 12, ..GenerateConfig::default() };
        let run = |prompts: &[Vec<u32>], ctx: &Context| {
            generate(model.as_ref(), prompts, (&config, ctx), &mut |_, _| true).unwrap()
        };
        let layout = Layout::new(&[1; 4]).unwrap();
        let together = run(&prompts, &Context::by_row(adapters.to_vec(), &chosen, &layout).unwrap());
        for ((prompt, chosen), together) in prompts.iter().zip(chosen).zip(&together) {
            let ctx = Context::new(chosen.map(|it| adapters[it].clone()));
            assert_eq!(run(std::slice::from_ref(prompt), &ctx)[0], *together);
        }
        let base = run(&prompts, &Context::default());
        assert!(base[0] != together[0] && base[2] != together[2], "the adapters say something else");
    }
}

#[test]
fn greedy_generation_follows_the_largest_logit_and_stops() {
    let model = model(&configs()[0]);
    let config = GenerateConfig { max_new_tokens: 6, ..GenerateConfig::default() };
    let mut streamed = Vec::new();
    let all = generate(model.as_ref(), &[text(4, 1), text(9, 2)], (&config, &Context::default()), &mut |number, id| {
        streamed.push((number, id));
        number == 0
    })
    .unwrap();
    assert_eq!((all[1].ids.len(), all[1].stop), (1, StopReason::Caller), "the second had enough");
    let first: Vec<u32> = streamed.iter().filter(|it| it.0 == 0).map(|it| it.1).collect();
    assert_eq!((all[0].ids.len(), &first), (6, &all[0].ids));
    let mut ids = text(4, 1);
    for id in &all[0].ids {
        let hidden = Tensor::from_vec(&[ids.len(), 32], whole(model.as_ref(), &ids));
        let scores =
            logits(&hidden, model.head(&Tape::disabled(), &Context::default()).as_head()).unwrap().to_f32_vec();
        let last = &scores[scores.len() - VOCAB..];
        assert!(last.iter().all(|it| *it <= last[*id as usize]), "{id} is not the most probable");
        ids.push(*id);
    }
}

#[test]
fn a_prompt_beyond_the_last_position_is_refused() {
    let model = model(configs().last().unwrap());
    let ask = |prompts: &[Vec<u32>]| {
        let config = GenerateConfig::default();
        generate(model.as_ref(), prompts, (&config, &Context::default()), &mut |_, _| true).unwrap_err().to_string()
    };
    assert!(ask(&[vec![1], vec![1; 700]]).contains("700"));
    assert!(ask(&[vec![1], vec![]]).contains("no token"));
}

/// A conversation: each prompt goes on from the one before and its answer, but for the last, which takes an answer back.
#[test]
fn a_text_that_is_continued_again_is_not_computed_anew() {
    for config in configs() {
        let model = model(&config);
        let config = GenerateConfig { max_new_tokens: 12, ..GenerateConfig::default() };
        let ctx = Context::default();
        let mut kept = KeptText::new();
        let mut said = text(30, 1);
        let mut before = Vec::new();
        for turn in 0..4 {
            if turn == 3 {
                said = [before.as_slice(), &text(5, 9)].concat();
            }
            let held = kept.held_of(&said);
            assert_eq!(
                held,
                if turn == 0 {
                    0
                } else if turn == 3 {
                    before.len()
                } else {
                    said.len() - 10
                },
                "turn {turn}"
            );
            let alone =
                generate(model.as_ref(), std::slice::from_ref(&said), (&config, &ctx), &mut |_, _| true).unwrap();
            let mut streamed = Vec::new();
            let stream = &mut |id| {
                streamed.push(id);
                true
            };
            let again = kept.generate(model.as_ref(), &said, (&config, &ctx), stream).unwrap();
            assert_eq!(again, alone[0], "turn {turn}");
            assert_eq!(streamed, again.ids);
            before = said.clone();
            // The last token that was said has not been passed through the model.
            said = [said.as_slice(), &again.ids, &text(9, turn + 2)].concat();
        }
        // The same question again, and another one.
        for prompt in [before.clone(), text(40, 7)] {
            let alone =
                generate(model.as_ref(), std::slice::from_ref(&prompt), (&config, &ctx), &mut |_, _| true).unwrap();
            assert_eq!(kept.generate(model.as_ref(), &prompt, (&config, &ctx), &mut |_| true).unwrap(), alone[0]);
        }
    }
}

#[test]
fn what_a_window_has_forgotten_does_not_come_back() {
    let model = model(&configs()[1]);
    let (all, more) = (text(400, 1), text(3, 5));
    let mut cut = Vec::new();
    for length in (200..400).step_by(3) {
        let mut cache = KvCache::new(model.config(), DType::F32, 1);
        for part in all.chunks(50) {
            next(model.as_ref(), &mut cache, &[part]);
        }
        if cache.truncate(length) {
            assert_eq!(cache.lengths(), [length]);
            let whole = whole(model.as_ref(), &[&all[..length], &more].concat());
            close("after a cut", &next(model.as_ref(), &mut cache, &[&more]), &whole[length * 32..]);
            cut.push(length);
        }
    }
    assert!(cut.contains(&398) && !cut.contains(&200), "the window is 20: {cut:?}");
}
