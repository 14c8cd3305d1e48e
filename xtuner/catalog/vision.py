"""Writes the parts of configs of models that see pictures: LLaVA and InternVL."""

from xtuner.catalog.data_part import concatenated, loader, template_function
from xtuner.catalog.model_part import from_pretrained, language_model, lora, tokenizer
from xtuner.catalog.page import InternvlPage, LlavaPage, VisionPage
from xtuner.catalog.settings import asking, saving, steps
from xtuner.catalog.text import Call, assign, call
from xtuner.catalog.vision_sources import VISION_SOURCES, VisionSource

LLM = "llm_name_or_path"
ENCODER = "visual_encoder_name_or_path"
ENCODER_PATH = "openai/clip-vit-large-patch14-336"
VISUAL_LORA = {"r": 64, "lora_alpha": 16, "lora_dropout": 0.05}


def data_settings(page: VisionPage) -> list[str]:
    """Write the places of rows and pictures, and how long a sample may be."""
    lines = ["# Data", f"data_root = {page.data_root!r}"]
    for row in (VISION_SOURCES[key] for key in page.data):
        lines.append(f"{row.path_variable} = data_root + {row.path!r}")
        lines.append(f"{row.folder_variable} = data_root + {row.folder!r}")
    lines += [f"prompt_template = PROMPT_TEMPLATE.{page.template}", f"max_length = {page.max_length}  # tokens", ""]
    return list(dict.fromkeys(lines[:-1])) + lines[-1:]


def llava_settings(page: LlavaPage) -> str:
    """Write PART 1 of LLaVA."""
    lines = ["# Model", f"{LLM} = {page.path!r}", f"{ENCODER} = {ENCODER_PATH!r}"]
    if page.pretrained:
        lines.append("# The projector, trained before")
        lines.append(f"pretrained_pth = './work_dirs/{page.pretrained.format(key=page.key)}.pth'")
    return "\n".join([*lines, "", *data_settings(page), *steps(page), *saving(page), *asking(page)]).rstrip()


def llava_model(page: LlavaPage) -> str:
    """Write PART 2 of LLaVA."""
    processor = from_pretrained("CLIPImageProcessor", ENCODER, ("trust_remote_code", "True"))
    whole = call(
        [
            ("type", "LLaVAModel"),
            ("freeze_llm", str(page.freeze_llm)),
            ("freeze_visual_encoder", str(page.freeze_visual)),
            ("pretrained_pth", "pretrained_pth") if page.pretrained else None,
            ("llm", language_model(page, LLM)),
            ("llm_lora", lora(page.lora)) if page.lora else None,
            ("visual_encoder", from_pretrained("CLIPVisionModel", ENCODER)),
            ("visual_encoder_lora", lora(VISUAL_LORA, None)) if page.visual_lora else None,
        ]
    )
    return "\n\n".join(
        [assign("tokenizer", tokenizer(page, LLM)), assign("image_processor", processor), assign("model", whole)]
    )


def llava_data(page: LlavaPage) -> str:
    """Write PART 3 of LLaVA."""
    rows = [VISION_SOURCES[key] for key in page.data]
    blocks = [assign(row.variable, llava_data_set(page, row)) for row in rows]
    name = rows[0].variable
    if len(rows) > 1:
        name = "train_dataset"
        blocks.append(concatenated([row.variable for row in rows]))
    pinned = ("pin_memory", "True") if page.pin_memory else None
    return "\n\n".join([*blocks, loader(page, name, "default_collate_fn", pinned)])


def llava_data_set(page: LlavaPage, row: VisionSource) -> Call:
    """Write one data set of LLaVA."""
    return call(
        [
            ("type", row.kind),
            ("data_path", row.path_variable),
            ("image_folder", row.folder_variable),
            ("tokenizer", "tokenizer"),
            ("image_processor", "image_processor"),
            ("max_dataset_length", str(row.limit)) if row.limit else None,
            ("dataset_map_fn", "llava_map_fn"),
            ("template_map_fn", template_function(page)),
            ("max_length", "max_length"),
            ("pad_image_to_square", str(page.square)),
        ]
    )


def internvl_settings(page: InternvlPage) -> str:
    """Write PART 1 of InternVL."""
    lines = ["# Model", f"path = {page.path!r}", "", *data_settings(page), *steps(page), *saving(page)]
    return "\n".join(lines).rstrip()


def internvl_model(page: InternvlPage) -> str:
    """Write PART 2 of InternVL."""
    bits = [("quantization_llm", "True"), ("quantization_vit", "False")] if page.bits == 4 else []
    whole = call(
        [
            ("type", "InternVL_V1_5"),
            ("model_path", "path"),
            ("freeze_llm", str(page.freeze_llm)),
            ("freeze_visual_encoder", "True"),
            *bits,
            ("llm_lora", lora(page.lora, bias=False)) if page.lora else None,
        ]
    )
    words = from_pretrained("AutoTokenizer", "path", ("trust_remote_code", "True"))
    return f"{assign('tokenizer', words)}\n\n{assign('model', whole)}"


def internvl_data(page: InternvlPage) -> str:
    """Write PART 3 of InternVL."""
    row = VISION_SOURCES[page.data[0]]
    rows = call(
        [
            ("type", "InternVL_V1_5_Dataset"),
            ("model_path", "path"),
            ("data_paths", row.path_variable),
            ("image_folders", row.folder_variable),
            ("template", "prompt_template"),
            ("max_length", "max_length"),
        ]
    )
    return f"{assign(row.variable, rows)}\n\n{loader(page, row.variable)}"
