//! GPT-Neo's tanh approximation of GELU.
