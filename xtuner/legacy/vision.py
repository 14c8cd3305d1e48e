"""Models of a 0.1.x config that see pictures: `LLaVAModel` and `InternVL_V1_5`."""

from xtuner.config.table import Table
from xtuner.errors import UserError
from xtuner.legacy.model import LOADERS, check_trainable, read_bits, read_checkpoint, read_lora
from xtuner.legacy.phrase import Phrase, as_phrase

VISION_MODELS = ("LLaVAModel", "InternVL_V1_5")
ENCODER = "CLIPVisionModel.from_pretrained"
PROCESSOR = "CLIPImageProcessor.from_pretrained"


def read_vision_model(model: Phrase) -> Table:
    """Translate a model that sees pictures to the table of its `ModelSpec`.

    Raises:
        UserError: a word or an argument that is not known or cannot be followed.
    """
    spec = Table(file=model.table.file, line=model.table.line)
    vision = Table(file=model.table.file, line=model.table.line)
    if model.word == "LLaVAModel":
        read_llava(model, spec, vision)
    else:
        read_internvl(model, spec, vision)
    model.move("freeze_visual_encoder", vision, "freeze")
    lora = model.phrase("llm_lora", "LoraConfig")
    if lora is not None:
        spec.put("lora", read_lora(lora), model.line("llm_lora"))
    lora = model.phrase("visual_encoder_lora", "LoraConfig")
    if lora is not None:
        vision.put("lora", read_lora(lora), model.line("visual_encoder_lora"))
    if model.take("freeze_llm"):
        spec.put("freeze", True, model.line("freeze_llm"))
    if model.take("pretrained_pth") is not None:
        model.move("pretrained_pth", spec, "weights")
    model.move("use_activation_checkpointing", spec, "recompute")
    model.done()
    check_trainable(spec, model.where())
    check_trainable(vision, model.where())
    spec.put("vision", vision, model.line("visual_encoder"))
    return spec


def read_llava(model: Phrase, spec: Table, vision: Table) -> None:
    """Translate what `LLaVAModel` alone says: a language model and an encoder, each a checkpoint of its own."""
    model.need("llm")
    llm = model.phrase("llm", *LOADERS)
    assert llm is not None
    read_checkpoint(llm, spec)
    model.need("visual_encoder")
    encoder = model.phrase("visual_encoder", ENCODER)
    assert encoder is not None
    path = "pretrained_model_name_or_path"
    vision.put("encoder", encoder.need(path), encoder.line(path))
    encoder.take("torch_dtype")  # the encoder computes in the number format of the run
    read_bits(encoder, vision)
    encoder.role = ENCODER
    encoder.done()
    model.move("visual_select_layer", vision, "select_layer")
    model.move("projector_depth", vision, "projector_depth")
    model.move("max_position_embeddings", spec, "max_position_embeddings")


def read_internvl(model: Phrase, spec: Table, vision: Table) -> None:
    """Translate what `InternVL_V1_5` alone says: one checkpoint that holds everything."""
    spec.put("path", model.need("model_path"), model.line("model_path"))
    for argument, owner in (("quantization_llm", spec), ("quantization_vit", vision)):
        if model.take(argument):
            line = model.line(argument)
            owner.put("quant", Table({"bits": 4}, file=spec.file, line=line), line)


def add_processor(processor: object, vision: Table, where: str) -> None:
    """Add the image processor that the data sets use, where it is not the encoder's own.

    Raises:
        UserError: not `CLIPImageProcessor.from_pretrained`, or an argument that is not known.
    """
    phrase = as_phrase(processor, (PROCESSOR,), "image_processor", where)
    path = phrase.need("pretrained_model_name_or_path")
    phrase.role = PROCESSOR
    phrase.done()
    if path == vision.get("encoder"):
        return
    if vision.get("processor", path) != path:
        raise UserError(f"{where}: the data sets use different image processors.", "Give all of them the same.")
    vision.put("processor", path, phrase.line("pretrained_model_name_or_path"))
