"""Question answering accuracy of an encoder, fine-tuned with the Hugging Face Trainer."""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from bali_ds.evaluation.question_data import Question, Split
from bali_ds.model.pretrained import load_model, load_tokenizer
from bali_ds.model.text_encoder import positions_of


@dataclass(frozen=True)
class FineTuning:
    """Fine-tuning hyperparameters; the defaults are those of BALI's evaluation."""

    epochs: int = 50
    learning_rate: float = 1e-5
    batch: int = 16
    max_tokens: int = 512
    """Maximum length; shorter if the architecture has fewer positions."""
    warmup: float = 0.1
    weight_decay: float = 0.01
    patience: int = 5
    """Epochs without improvement of development accuracy before training stops."""
    seed: int = 42


def evaluate_questions(model: Path, splits: list[Split], tuning: FineTuning) -> dict[str, Any]:
    """Fine-tune on each split, select the epoch by development accuracy, and return the test accuracies.

    Returns:
        {"accuracy": {"mean", "sd", "each"}, "majority": mean accuracy of the most frequent training answer,
        "n": test questions, "rounds": ...}; sd is the standard deviation over rounds, 0 for one round.
    """
    scores = [_test_accuracy(model, split, tuning, tuning.seed + number) for number, split in enumerate(splits)]
    majority = [_majority(split) for split in splits]
    return {
        "accuracy": {
            "mean": float(np.mean(scores)),
            "sd": float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0,
            "each": scores,
        },
        "majority": float(np.mean(majority)),
        "rounds": len(splits),
        "n": sum(len(split.test) for split in splits),
    }


def _majority(split: Split) -> float:
    answer = Counter(question.answer for question in split.train).most_common(1)[0][0]
    return sum(question.answer == answer for question in split.test) / len(split.test)


class _Encoded(Dataset):
    """Tokenized questions; a multiple-choice question has one row per option."""

    def __init__(self, questions: list[Question], tokenizer: Any, labels: list[str], max_tokens: int) -> None:
        self.rows = []
        for question in questions:
            firsts = [question.text] * max(1, len(question.options))
            seconds = list(question.options) or ([question.context] if question.context else None)
            # truncation=True shortens the longer of the two first, so long contexts do not truncate questions
            encoded = tokenizer(firsts, seconds, truncation=True, max_length=max_tokens)
            values = {key: rows if question.options else rows[0] for key, rows in encoded.items()}
            self.rows.append({**values, "label": labels.index(question.answer) if question.answer in labels else -100})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def _test_accuracy(model: Path, split: Split, tuning: FineTuning, seed: int) -> float:
    from transformers import (
        AutoModelForMultipleChoice,
        AutoModelForSequenceClassification,
        DataCollatorForMultipleChoice,
        DataCollatorWithPadding,
        EarlyStoppingCallback,
        PrinterCallback,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    set_seed(seed)
    tokenizer = load_tokenizer(model)
    choice = bool(split.train[0].options)
    labels = sorted({question.answer for question in split.train})
    if choice:
        labels = [str(option) for option in range(len(split.train[0].options))]
        network, _ = load_model(AutoModelForMultipleChoice, model, dtype=torch.float32)
    else:
        kind = AutoModelForSequenceClassification
        network, _ = load_model(kind, model, num_labels=len(labels), dtype=torch.float32)
    longest = min(tuning.max_tokens, positions_of(network))
    train, development, test = (
        _Encoded(part, tokenizer, labels, longest) for part in (split.train, split.development, split.test)
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=tuning.epochs,
            learning_rate=tuning.learning_rate,
            per_device_train_batch_size=tuning.batch,
            per_device_eval_batch_size=tuning.batch,
            warmup_steps=int(tuning.warmup * tuning.epochs * -(-len(train) // tuning.batch)),
            weight_decay=tuning.weight_decay,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            logging_strategy="no",
            report_to=[],
            dataloader_pin_memory=torch.cuda.is_available(),
            seed=seed,
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=network,
            args=arguments,
            train_dataset=train,
            eval_dataset=development,
            data_collator=(DataCollatorForMultipleChoice if choice else DataCollatorWithPadding)(tokenizer),
            compute_metrics=_accuracy,
            callbacks=[EarlyStoppingCallback(tuning.patience)],
        )
        trainer.remove_callback(PrinterCallback)  # it prints to stdout
        trainer.train()
        return float(trainer.evaluate(test)["eval_accuracy"])


def _accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(axis=-1) == prediction.label_ids).mean())}
