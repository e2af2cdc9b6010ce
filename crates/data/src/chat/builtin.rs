//! Templates of the house, for models that bring none.

/// ChatML: each turn between `<|im_start|>` with its role and `<|im_end|>`. For models whose tokenizer has these two tokens.
pub const CHATML: &str = r"{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}";

/// The layout of instruction rows ([`instruction_prompt`](crate::instruction_prompt)) for any number of turns: it needs no token but
/// the end of a text, which closes each answer. What a system message says comes first.
pub const INSTRUCTION: &str = r"{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '### Instruction:\n' + message.content + '\n\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '### Response:\n' + message.content + eos_token + ('' if loop.last else '\n\n') }}
    {%- elif message.role == 'system' %}
        {{- message.content + '\n\n' }}
    {%- else %}
        {{- raise_exception('the built-in layout of instructions has no place for the role ' + message.role) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '### Response:\n' }}
{%- endif %}";
