"""Questions that are asked before, during and after training, so that a person sees the model change."""

from functools import partial
from pathlib import Path

from xtuner.config.spec import ProbeSpec
from xtuner.conversation.builtin import PLAIN
from xtuner.conversation.chat_model import Sampling
from xtuner.conversation.message import Conversation, Message
from xtuner.conversation.template import ChatTemplate
from xtuner.dataset.pipeline import choose_template
from xtuner.engine.callbacks.paused import paused
from xtuner.engine.run import Callback, Run
from xtuner.generate.local import LocalChat
from xtuner.log import LOGGER

FIRST_TOKENS = 50
"""Tokens of an answer before training: enough to see that the model works."""


class Probe(Callback):
    """Logs question and answer as `Sample output:` blocks; at checkpoints also into `eval_outputs_iter_<N-1>.txt`."""

    def __init__(self, spec: ProbeSpec, template: ChatTemplate | None) -> None:
        """`template` is that of the data; without one a question is the beginning of a plain text.

        Raises:
            UserError: `spec` names an unknown template.
        """
        self.spec = spec
        self.template = (choose_template(spec.template, None) if spec.template else template) or PLAIN
        self.answered = -1
        self.answers: list[str] = []
        self.conversations = [self._conversation(question) for question in spec.questions]
        if spec.system and self.template.system is None:
            LOGGER.info("The template %s has no place for probe.system; it is left out.", self.template.name)

    def before_train(self, run: Run) -> None:
        """Ask for short answers of the model as it is."""
        self.ask(run, min(FIRST_TOKENS, self.spec.max_new_tokens), "before_train")

    def after_iteration(self, run: Run) -> None:
        """Ask every `probe.every` iterations."""
        if self.spec.every is not None and run.iteration % self.spec.every == 0:
            self.ask(run, self.spec.max_new_tokens, "after_train_iter")

    def after_checkpoint(self, run: Run, path: Path) -> None:
        """Ask, and save the answers beside the log."""
        self.ask(run, self.spec.max_new_tokens, "after_checkpoint")
        if self.answers and not run.spec.checkpoint.by_epoch:
            run.work.write_answers(run.iteration, self.answers)

    def after_train(self, run: Run) -> None:
        """Ask the trained model."""
        self.ask(run, self.spec.max_new_tokens, "after_train")

    def ask(self, run: Run, max_new_tokens: int, moment: str) -> None:
        """Ask all questions, once per iteration; a wish to stop cuts it short."""
        if self.answered == run.iteration:
            return
        self.answered, self.answers = run.iteration, []
        LOGGER.info("%s in EvaluateChatHook.", moment)
        sampling = Sampling(
            max_new_tokens,
            temperature=self.spec.temperature,
            top_k=self.spec.top_k,
            top_p=self.spec.top_p,
            repetition_penalty=self.spec.repetition_penalty,
            seed=run.seed,
            stop_words=tuple(self.spec.stop_words),
        )
        chat = LocalChat(run.model, run.tokenizer, self.template)  # a new one: its cache is of the weights of now
        with paused(run.model):
            for conversation in self.conversations:
                answer = run.strategy.within(partial(_answer, run, chat, conversation, sampling))
                if answer is None:
                    self.answers = []
                    return
                prompt = "".join(span.text for span in self.template.render(conversation, reply=True))
                self.answers.append(f"{prompt}{answer}")
                LOGGER.info("Sample output:\n%s\n", self.answers[-1])

    def _conversation(self, question: str) -> Conversation:
        opening = [Message("system", self.spec.system)] if self.spec.system and self.template.system is not None else []
        return [*opening, Message("user", question)]


def _answer(run: Run, chat: LocalChat, conversation: Conversation, sampling: Sampling) -> str | None:
    """Return the answer, or None: someone wished to stop. All ranks say the same, and stop together."""
    answer = ""
    for delta in chat.stream(conversation, sampling):
        answer += delta.text
        if run.stopping():
            return None
    return answer
