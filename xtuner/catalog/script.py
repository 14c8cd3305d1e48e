"""Scripts that 0.1.x kept among its configs, so that it listed them: what takes their place."""

from collections.abc import Mapping

LATER = "takes its place; in this version it cannot yet read {}."

SCRIPTS: Mapping[str, str] = {
    "convert_phi_to_llama": "Nothing is needed in its place: Phi-3 is loaded as it is.",
    "convert_to_official": f"xtuner convert pth_to_hf CONFIG PTH SAVE_DIR {LATER.format('InternVL')}",
    "convert_xtuner_weights_to_hf": (
        f"xtuner convert pth_to_hf CONFIG PTH SAVE_DIR --save-format huggingface {LATER.format('LLaVA')}"
    ),
    "convert_xtuner_weights_to_llava": (
        f"xtuner convert pth_to_hf CONFIG PTH SAVE_DIR --save-format official {LATER.format('LLaVA')}"
    ),
}
