"""A checkpoint becomes a module: families, tokenizers, LoRA, quantisation, output heads.

`import xtuner.model` is all that a program needs whose `AutoModelForCausalLM.from_pretrained` shall know the families
of our own. It imports transformers; what is known of models without that stands in `checkpoint.kind` and
`checkpoint.describe`.
"""

from xtuner.model.register import register_families

register_families()

__all__: list[str] = []
