"""Classification of noised texts, on the data of fairseq's sentence_prediction."""

import logging
import os
from dataclasses import dataclass, field
from typing import Optional

from fairseq.data import Dictionary, data_utils, indexed_dataset
from fairseq.dataclass import FairseqDataclass
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks import register_task
from fairseq.tasks.sentence_prediction import SentencePredictionConfig, SentencePredictionTask
from omegaconf import II, OmegaConf

from diffusion_fairseq.criterions.latent_classification import LatentClassificationCriterion
from diffusion_fairseq.data.filler import is_filler
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.latent_classifier import LatentClassifierModel
from diffusion_fairseq.models.latent_space import LatentSpace
from diffusion_fairseq.models.persistence import fingerprint
from diffusion_fairseq.tasks.seq2seq_diffusion import Seq2SeqDiffusionTask
from diffusion_fairseq.tasks.updates import SharedUpdates

logger = logging.getLogger(__name__)


@dataclass
class LatentClassificationTaskConfig(FairseqDataclass):
    """Texts and their labels."""

    data: Optional[str] = field(
        default=None,
        metadata={"help": "folder with input0/ and label/, each binarised by fairseq-preprocess --only-source: input0 "
                          "with the dictionary of the diffusion model, label one word a line"},
    )
    seed: int = II("common.seed")


@register_task("latent_classification", dataclass=LatentClassificationTaskConfig)
class LatentClassificationTask(SharedUpdates):
    """Train and validate a latent_classifier."""

    cfg: LatentClassificationTaskConfig

    def __init__(self, cfg: LatentClassificationTaskConfig, dictionary: Dictionary, label_dictionary: Dictionary):
        super().__init__(cfg)
        self.dictionary, self.label_dictionary = dictionary, label_dictionary
        self.labels = [word for word in label_dictionary.symbols[label_dictionary.nspecial:]
                       if not is_filler(word)]
        self.model: Optional[LatentClassifierModel] = None

    @classmethod
    def setup_task(cls, cfg: LatentClassificationTaskConfig, **kwargs) -> "LatentClassificationTask":
        """Load the dictionaries.

        Raises:
            UserError: no data, no dictionary, or fewer than two labels.
        """
        texts, labels = (Seq2SeqDiffusionTask.load_dictionary(os.path.join(cfg.data, part, "dict.txt"))
                         for part in ("input0", "label"))
        task = cls(cfg, texts, labels)
        if len(task.labels) < 2:
            raise UserError(f"{os.path.join(cfg.data, 'label', 'dict.txt')} names {len(task.labels)} labels: "
                            "classification takes two or more")
        logger.info(f"dictionary: {len(texts)} types; labels: {', '.join(task.labels)}")
        return task

    def load_dataset(self, split: str, combine: bool = False, **kwargs) -> None:
        """Load a split, its texts cut to the positions of the model.

        Raises:
            UserError: texts or labels are missing.
        """
        for part in ("input0", "label"):
            path = os.path.join(self.cfg.data, part, split)
            if not indexed_dataset.dataset_exists(path, impl=None):
                raise UserError(f"no {path}.idx: binarise that split with fairseq-preprocess --only-source --destdir "
                                f"{os.path.join(self.cfg.data, part)}")
        self.check_labels(split)
        options = SentencePredictionConfig(data=self.cfg.data, seed=self.cfg.seed, regression_target=False,
                                           shorten_method="truncate", max_positions=self.max_positions())
        reader = SentencePredictionTask(options, self.dictionary, self.label_dictionary)
        self.datasets[split] = reader.load_dataset(split, combine=combine)

    def check_labels(self, split: str) -> None:
        """Refuse labels that do not fit.

        Raises:
            UserError: not one for each text, or one that is no word of the labels' dictionary.
        """
        path = os.path.join(self.cfg.data, "label", split)
        texts = data_utils.load_indexed_dataset(os.path.join(self.cfg.data, "input0", split), self.dictionary, None)
        labels = data_utils.load_indexed_dataset(path, self.label_dictionary, None)
        if len(labels) != len(texts):
            raise UserError(f"{path}: {len(labels)} labels for {len(texts)} texts: binarise both again, from two files "
                            "of as many lines")
        first = self.label_dictionary.nspecial
        for line, label in enumerate((labels[row] for row in range(len(labels))), 1):
            if len(label) != 2 or label[0] < first:
                raise UserError(f"{path}, line {line}: {self.label_dictionary.string(label)!r} is not one of the "
                                f"labels of training ({', '.join(self.labels[:8])}): correct it and binarise again")

    def build_model(self, cfg, from_checkpoint: bool = False) -> LatentClassifierModel:
        """Build a latent_classifier; this task cuts its texts to what the model takes.

        Raises:
            UserError: cfg names a model of another kind, or no diffusion model.
        """
        arch = getattr(cfg, "_name", None) or getattr(cfg, "arch", None)
        if ARCH_MODEL_REGISTRY.get(arch) is not LatentClassifierModel:
            raise UserError(f"task latent_classification serves a latent_classifier, not {arch!r}")
        if from_checkpoint:
            # Which holds what it has taken from the file that this option names.
            cfg = OmegaConf.merge(cfg, {"diffusion_path": None})
        elif cfg.diffusion_path is None:
            raise UserError("--diffusion-path is needed: the checkpoint of the model whose text is to be led")
        self.model = super().build_model(cfg, from_checkpoint)
        return self.model

    def build_criterion(self, cfg, *args, **kwargs) -> LatentClassificationCriterion:
        """As fairseq's.

        Raises:
            UserError: cfg names a criterion of other models.
        """
        criterion = super().build_criterion(cfg, *args, **kwargs)
        if not isinstance(criterion, LatentClassificationCriterion):
            raise UserError(f"--criterion {cfg._name} is not of this task: give --criterion latent_classification")
        return criterion

    def check_space(self, space: LatentSpace, path: str) -> None:
        """Refuse the space of a diffusion model with another dictionary than the texts'.

        Raises:
            UserError: naming its file.
        """
        if len(space.embedding) != len(self.dictionary) or space.dictionary not in (None, fingerprint(self.dictionary)):
            raise UserError(f"{path} was trained with another dictionary than {os.path.join(self.cfg.data, 'input0')}: "
                            "binarise the texts with fairseq-preprocess --srcdict, naming the one it was trained with")

    def max_positions(self) -> int:
        """Longest text, in tokens: what the model takes, once it is known."""
        known = self.model is not None and self.model.space is not None
        return self.model.max_positions() if known else SentencePredictionConfig.max_positions

    @property
    def source_dictionary(self) -> Dictionary:
        return self.dictionary

    @property
    def target_dictionary(self) -> None:
        return None
