"""Makes the built-in model: tokenizer, training from scratch, examination, card (see README.md beside this file).

python tools/make_tiny.py tokenizer OUT      a sentencepiece BPE from generated text
python tools/make_tiny.py train OUT          random weights to a chat model; a GPU needs minutes, a CPU days
python tools/make_tiny.py ask OUT            the held-out questions, with the answers
python tools/make_tiny.py finish OUT         ask, then write generation config, card, ordinary talks (quickstart)
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "xtuner" / "assets"
sys.path.insert(0, str(ROOT))


def main() -> int:
    """Read the words and do one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["tokenizer", "train", "finish", "ask"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocab-size", type=int, default=3584)
    parser.add_argument("--talks", type=int, default=3_600_000, help="conversations to train on")
    parser.add_argument("--steps", type=int, default=11_000)
    parser.add_argument("--batch-tokens", type=int, default=65_536)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    if args.step == "tokenizer":
        from tiny_model.tokenizer import train_tokenizer

        train_tokenizer(args.folder, vocab_size=args.vocab_size, num_talks=60_000, seed=args.seed)
        return 0
    if args.step == "train":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        from tiny_model.encode import encode_talks
        from tiny_model.train import train_model

        tokens = encode_talks(args.folder, num_talks=args.talks, seed=args.seed, num_processes=os.cpu_count() or 1)
        print(f"{len(tokens.borders) - 1:,} conversations, {len(tokens.ids):,} tokens", flush=True)
        train_model(
            tokens,
            args.folder,
            vocab_size=args.vocab_size,
            steps=args.steps,
            batch_tokens=args.batch_tokens,
            lr=args.lr,
            seed=args.seed,
            device=args.device,
        )
        return 0
    from tiny_model.exam import examine, load_examinee

    model = load_examinee(args.folder)
    marks = examine(args.folder, model)
    for mark in marks:
        print(f"{' ' if mark.right and mark.ended else 'X'} {mark.question}\n    {mark.answer}")
    right = sum(mark.right and mark.ended for mark in marks)
    print(f"{right} of {len(marks)} right")
    if args.step == "finish":
        from tiny_model.card import ordinary_talks, write_card, write_generation_config
        from tiny_model.tokenizer import write_json

        write_generation_config(args.folder)
        write_json(ASSETS / "ordinary.json", ordinary_talks(args.seed))
        write_card(args.folder, marks, sum(weight.numel() for weight in model.parameters()))
    return 0 if right >= 0.9 * len(marks) else 1


if __name__ == "__main__":
    sys.exit(main())
