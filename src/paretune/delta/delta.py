"""A delta: what training changed, small enough to ship, applied to the untouched base."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paretune.delta import apply as application
from paretune.delta import export, format, merge, summary
from paretune.delta.arrays import DTYPES
from paretune.delta.contents import Contents, rounded
from paretune.errors import PareError
from paretune.files import write_atomic


class Delta(Contents):
    """The trained values of a tunable model; fields as in :class:`~paretune.delta.contents.Contents`.

    ``print(delta)`` shows what is in it. ``delta.count`` is its number of weights, ``delta.digest`` a sha256
    of its content.
    """

    def save(self, path: str | Path) -> None:
        """Write the delta into one ``.safetensors`` file, whole or not at all.

        Raises:
            PareError: A value is NaN or infinite.
            OSError: The disk is full or the folder cannot be written; an older file is left as it was.
        """
        write_atomic(path, format.encode(self))

    @classmethod
    def load(cls, path: str | Path) -> "Delta":
        """Read a delta; every byte of the file is checked.

        Raises:
            PareError: No such file, not a delta, a newer format, or a damaged file.
            OSError: The file cannot be read.
        """
        return cls(**vars(format.read(path)))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the delta and a model card into a folder, for :meth:`from_pretrained`.

        Raises:
            PareError: A value is NaN or infinite.
            OSError: The folder cannot be written.
        """
        from paretune.delta import hub

        hub.save_folder(self, folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        message: str = "A delta of paretune",
    ) -> str:
        """Upload the delta and its model card (base, method, budget, scores, how to load it) to the Hub.

        Args:
            repo_id: ``name/repository``; made if it is absent.
            private: Of a new repository; None takes the account's default.
            token: Of the Hub; None takes the one that is logged in.
            revision: Branch; None is the main one.
            message: Of the commit.

        Returns:
            The address of the commit.

        Raises:
            PareError: The Hub cannot be reached or refuses.
        """
        from paretune.delta import hub

        return hub.push(self, repo_id, private, token, revision, message)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> "Delta":
        """Read a delta from a folder or a repository of the Hub; every byte of the file is checked.

        Args:
            name: What :meth:`save_pretrained` wrote, or the id of what :meth:`push_to_hub` made.
            revision: Branch, tag or commit on the Hub.
            token: Of the Hub; None takes the one that is logged in.
            cache_dir: Where downloads are kept; None takes the Hub's own place.

        Raises:
            PareError: No delta there, the Hub cannot be reached, or as :meth:`load`.
        """
        from paretune.delta import hub

        return cls.load(hub.find(name, revision, token, cache_dir))

    @classmethod
    def verify(cls, path: str | Path, model: nn.Module | None = None) -> "Delta":
        """Check a file, and whether it can be applied to a model; the model is left as it is.

        Returns:
            The delta.

        Raises:
            PareError: What is wrong, as :meth:`load` and :meth:`apply` say it.
        """
        delta = cls.load(path)
        if model is not None:
            application.check(delta, model)
        return delta

    def apply(self, model: nn.Module, merge: bool = False) -> application.Applied:
        """Put the delta on its base model, in place, beside other applied deltas if there are any.

        Args:
            model: The untouched base model, or one with other deltas applied to it.
            merge: Fold added modules into the base weights (LoRA only) instead of attaching them.

        Returns:
            The applied delta: ``.revert()`` takes it off again, in any order with others, bit for bit; it is
            also a context manager that does so at its end.

        Raises:
            PareError: The delta is for another model, dtype or task, or a module cannot be merged; the model
                is bit-equal to what it was.
        """
        return application.apply(self, model, merge)

    def merged(self, model: nn.Module) -> nn.Module:
        """Put the delta on its base model for good, with added modules folded in.

        What comes out is an ordinary checkpoint for ``save_pretrained``.

        Args:
            model: The untouched base model; changed in place.

        Returns:
            The same model. Nothing is kept to go back to.

        Raises:
            PareError: As :meth:`apply`, or other deltas are applied to the model.
        """
        application.fold(self, model)
        return model

    def load_base(self, model: str | Path | None = None) -> nn.Module:
        """Load the untouched base this delta was made for, with a head for its task.

        Args:
            model: Folder or Hub id of the base; None (default) takes the one it was trained on.

        Raises:
            PareError: The delta does not know its task, or the base cannot be loaded.
        """
        # Data sets and metrics come along with it; reading a delta should not wait for them.
        from paretune.task.models import load_model_from_spec

        if not self.task:
            raise PareError("this delta does not know its task: load its base yourself and call apply(model)")
        dtype = getattr(torch, self.base.dtype, None)
        if dtype not in DTYPES:
            raise PareError(
                f"the delta's base has dtype {self.base.dtype!r}, which no model can be loaded in"
            )
        return load_model_from_spec(str(model or self.base.model), self.task, dtype=dtype)

    def load_model(
        self, model: str | Path | None = None, dtype: torch.dtype | None = None, merge: bool = False
    ) -> nn.Module:
        """Load the base this delta was made for and apply the delta.

        Args:
            model: As for :meth:`load_base`.
            dtype: What the model is converted to at the end; None (default) keeps the base's dtype.
            merge: Fold added modules into the weights: an ordinary checkpoint for ``save_pretrained``.

        Raises:
            PareError: The base cannot be loaded, or its weights are not those of the delta's base.
        """
        base = self.load_base(model)
        if merge:
            self.merged(base)
        else:
            self.apply(base)
        return base if dtype is None else nn.Module.to(base, dtype)

    def to(self, dtype: torch.dtype) -> "Delta":
        """The delta with all values rounded to a dtype (bf16 halves it); score what you ship.

        Raises:
            PareError: Not a dtype a delta can hold.
        """
        return rounded(self, dtype)

    def with_info(self, **info: Any) -> "Delta":
        """The delta with more to know about it (JSON): scores, learning rate.

        Raises:
            PareError: Something that JSON cannot hold.
        """
        return replace(self, info={**self.info, **info})

    @staticmethod
    def merge(deltas: "Sequence[Delta]", overlap: merge.Overlap = "error") -> "Delta":
        """The union of deltas of one base; see :func:`paretune.delta.merge.merge`."""
        return merge.merge(deltas, overlap)

    def export_peft(self, folder: str | Path) -> None:
        """Write a LoRA-only delta as a peft adapter; see :func:`paretune.delta.export.export_peft`."""
        export.export_peft(self, folder)

    def inspect(self) -> dict[str, Any]:
        """What is in the delta and what each part costs, as JSON; see :func:`paretune.delta.summary`."""
        return summary.summarise(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} for {self.base.model}: {self.count:,} weights>"

    def __str__(self) -> str:
        return summary.render(self)
