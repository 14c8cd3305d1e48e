"""Every built-in config translates to a `RunSpec`, or says in a sentence which part of the toolkit it waits for."""

from collections import Counter
from pathlib import Path

from xtuner.catalog.names import run_names
from xtuner.catalog.render import render
from xtuner.config.reader import read_text
from xtuner.conversation.builtin import TEMPLATES
from xtuner.dataset import FORMATS
from xtuner.errors import UserError
from xtuner.legacy.run import to_run_spec

# what a sentence begins with (after file and line) -> how many configs of 0.1.23 wait for that
WAITING = {
    "LLaVAModel is for models that see pictures": 33,
    "InternVL_V1_5 is for models that see pictures": 21,
    "MOSSSFTDataset is for MOSS data": 18,
    "DPO is for preference training": 7,
    "ORPO is for preference training": 5,
    "RewardModel is for reward models": 5,
    "process_ms_dataset is for data sets of ModelScope": 5,
    "build_packed_dataset is for tokenised InternEvo data": 5,
    "DeepseekV2ForCausalLM.from_pretrained is for experts in shards": 3,
    "framework is for configs of the HuggingFace Trainer": 3,
    "val_dataloader is for the MMLU test": 1,
    "max_position_embeddings of SupervisedFinetune is for stretching the positions of a model": 1,
    "tokenizer of SupervisedFinetune is for adding tokens to a model": 1,
    "data_dir of load_dataset is for a folder inside a data set": 1,
    "one sequence over 2 cards is not possible yet": 2,
    "one sequence over 4 cards is not possible yet": 3,
    "one sequence over 8 cards is not possible yet": 5,
    "one sequence over 16 cards is not possible yet": 2,
    "one sequence over 32 cards is not possible yet": 1,
}


def test_every_name_translates_or_says_what_it_waits_for() -> None:
    found: Counter[str] = Counter()
    for name in run_names():
        config = read_text(render(name), Path(f"{name}.py"), "python")
        try:
            spec = to_run_spec(config)
        except UserError as error:
            place, _, what = error.what.partition(": ")
        else:
            assert spec.data.template is None or spec.data.template in TEMPLATES
            assert {source.format for source in spec.data.train} <= {None, *FORMATS}
            continue
        assert place.startswith(f"{name}.py:"), place
        assert ". " not in what.rstrip("."), what
        found[next((start for start in WAITING if what.startswith(start)), what)] += 1
    assert dict(found) == WAITING
