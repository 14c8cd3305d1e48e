"""Data with pictures of the recipe book: where rows and pictures are, below `VisionPage.data_root`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class VisionSource:
    """One data set. `variable` and the `..._variable`s are the names that it has in a config."""

    variable: str
    path: str
    folder: str
    path_variable: str = "data_path"
    folder_variable: str = "image_folder"
    kind: str = "LLaVADataset"
    limit: int | None = None
    """How many rows are drawn from it."""


def mixed(key: str, path: str, folder: str = "data") -> VisionSource:
    """Make a row of a data set that is one of many."""
    return VisionSource(f"{key}_dataset", path, folder, f"{key}_data_path", f"{key}_image_folder")


REFCOCO = ("RefCOCOJson/train.json", "llava_images", "refcoco_path", "image_folder")

VISION_SOURCES: dict[str, VisionSource] = {
    "pretrain": VisionSource("llava_dataset", "LLaVA-Pretrain/blip_laion_cc_sbu_558k.json", "LLaVA-Pretrain/images"),
    "sharegpt4v_pretrain": VisionSource("llava_dataset", "share-captioner_coco_lcs_sam_1246k_1107.json", "data"),
    "instruct": VisionSource("llava_dataset", "LLaVA-Instruct-150K/llava_v1_5_mix665k.json", "llava_images"),
    "refcoco": VisionSource("refcoco_dataset", *REFCOCO, "RefCOCOJsonDataset", 70000),
    "inv_refcoco": VisionSource("inv_refcoco_dataset", *REFCOCO, "InvRefCOCOJsonDataset", 70000),
    "sharegpt4v_caption": mixed("sharegpt4v_caption", "sharegpt4v_instruct_gpt4-vision_cap100k.jsonl"),
    "llava_zh": mixed("llava", "llava_instruct_150k_zh.jsonl", "data/coco"),
    "sharegpt4v": mixed("sharegpt4v", "sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k.jsonl"),
    "dvqa": mixed("dvqa", "dvqa_train_200k.jsonl", "data/dvqa"),
    "chartqa": mixed("chartqa", "chartqa_train_18k.jsonl", "data/chartqa"),
    "ai2d": mixed("ai2d", "ai2d_train_12k.jsonl", "data/ai2d"),
    "docvqa": mixed("docvqa", "docvqa_train_10k.jsonl", "data/docvqa"),
    "geoqa": mixed("geoqa", "geoqa+.jsonl", "data/geoqa+"),
    "synthdog": mixed("synthdog", "synthdog_en.jsonl", "data/synthdog-en"),
}
