//! LLaMA and GPT-Neo from Hugging Face folders, with generation.
