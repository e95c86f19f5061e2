"""Hugging Face's recognisers as teachers (extra ``hf``): CTC models, and encoder-decoders such as Whisper.

A source is a local folder or a hub id. Weights are read from safetensors or, by transformers' own rules, checked pickles; code
that comes with a model is never run.

Dimension legend: B utterances, S samples, T frames, V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from asrkd.teachers.base import (
    TEXT_ONLY,
    CtcTeacher,
    Precision,
    at_rate,
    autocast,
    check_search,
    measured_frame_shift_s,
    stack,
    teacher_identity,
)
from asrkd.types import Frames, Hypothesis, SpeechBatch, TeacherTargets, Vocabulary


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ValueError("teacher: Hugging Face models need the extra: pip install 'asrkd[hf]'") from None
    return transformers


class HuggingFaceCtcTeacher(CtcTeacher):
    """``AutoModelForCTC``: wav2vec 2.0, HuBERT, WavLM, Parakeet-CTC and whatever the installed transformers has.

    Audio is prepared by the model's own feature extractor. Where that gives an attention mask (layer-norm wav2vec 2.0,
    Parakeet), a batch is heard at once; else utterances are heard one by one, since padding would change what such a model says.

    Args:
        source: Local folder or hub id.
        device: See :class:`CtcTeacher`, as all further arguments.
        hidden: Layers to give, ``"layer.0"`` the output of the encoder's first block.

    Raises:
        ValueError: If transformers is not installed, or the encoder has no such layer.
        OSError: If the source is not there.
    """

    def __init__(
        self,
        source: str,
        *,
        device: str = "cpu",
        nbest: int = 0,
        beam: int = 8,
        precision: Precision = "fp32",
        hidden: tuple[str, ...] = (),
    ) -> None:
        hf = _transformers()
        self._model = hf.AutoModelForCTC.from_pretrained(source).to(device).eval()
        self._extractor = hf.AutoFeatureExtractor.from_pretrained(source)
        self._tokenizer = hf.AutoTokenizer.from_pretrained(source)
        self._rate = int(self._extractor.sampling_rate)
        self._device = device
        self._by_mask = hasattr(self._model, "_get_output_attention_mask")  # models on features rather than samples
        self._at_once = self._by_mask or (
            bool(getattr(self._extractor, "return_attention_mask", False))
            and hasattr(self._model, "_get_feat_extract_output_lengths")
        )
        self._layers = _layer_numbers(hidden, self._model.config)
        ratio = getattr(self._model.config, "inputs_to_logits_ratio", None)
        shift_s = (
            ratio / self._rate if ratio else measured_frame_shift_s(lambda a: len(self._alone(a[0])[0]), self._rate)
        )
        vocabulary = Vocabulary(
            tokens_of(self._tokenizer, self._model.config.vocab_size), _blank_id(self._model.config)
        )
        super().__init__(
            vocabulary,
            self._rate,
            shift_s,
            self._model,
            device=device,
            nbest=nbest,
            beam=beam,
            precision=precision,
            hidden=hidden,
        )

    def _hear(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        rows = [audio[row, :samples] for row, samples in enumerate(lengths.tolist())]
        if not self._at_once:
            heard = [self._alone(row) for row in rows]
            states = {name: stack([one[name] for _, one in heard])[0] for name in self._layers}
            return *stack([scores for scores, _ in heard]), states
        inputs = self._extractor(
            [row.cpu().numpy() for row in rows], sampling_rate=self._rate, padding=True, return_tensors="pt"
        )
        output = self._model(**inputs.to(self._device), output_hidden_states=bool(self._layers))
        frames = (
            self._model._get_feat_extract_output_lengths(lengths) if not self._by_mask else self._count(inputs, output)
        )
        return output.logits, frames, self._states(output)

    @torch.no_grad()
    def _alone(self, samples: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Scores ``(T, V)`` and hidden states, each ``(T, D)``."""
        inputs = self._extractor(samples.cpu().numpy(), sampling_rate=self._rate, return_tensors="pt")
        output = self._model(**inputs.to(self._device), output_hidden_states=bool(self._layers))
        frames = int(self._count(inputs, output)[0]) if self._by_mask else output.logits.shape[1]
        return output.logits[0, :frames], {name: values[0, :frames] for name, values in self._states(output).items()}

    def _count(self, inputs: Any, output: Any) -> Tensor:
        """Valid frames ``(B,)`` by the mask of the features, as the model's own ``generate`` counts them."""
        mask = self._model._get_output_attention_mask(inputs["attention_mask"], target_length=output.logits.shape[1])
        return mask.sum(-1)

    def _states(self, output: Any) -> dict[str, Tensor]:
        return {name: output.hidden_states[number + 1] for name, number in self._layers.items()}

    def _text(self, tokens: Sequence[int]) -> str:
        # Repetitions were merged and blanks left out by the search: what is left must not be merged again.
        marks = set(self._tokenizer.all_special_ids)
        pieces = self._tokenizer.convert_ids_to_tokens([token for token in tokens if token not in marks])
        if hasattr(self._tokenizer, "word_delimiter_token"):
            return " ".join("".join(pieces).replace(self._tokenizer.word_delimiter_token, " ").split())
        return str(self._tokenizer.convert_tokens_to_string(pieces)).strip()


class HuggingFaceSeq2SeqTeacher:
    """``AutoModelForSpeechSeq2Seq`` (Whisper and others): N-best transcripts of its own beam search, as text.

    The score of a hypothesis is the total log-probability of its tokens and end under the decoder; lists are in its order.
    Audio beyond what the model's feature extractor takes (30 s for Whisper) is refused: cut it first.

    With ``decoder`` hypotheses have token ids and confidences too, and the decoder's posteriors over its own tokens come along,
    forced on the best hypothesis. The vocabulary is then the model's with a blank behind it that never has any mass.

    Args:
        source: Local folder or hub id.
        device: Where it runs.
        nbest: Hypotheses of each utterance.
        beam: Beam width, at least ``nbest``.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        language: Code such as ``en``, for a multilingual Whisper; ``None`` lets it find out.
        task: ``transcribe`` or ``translate``, for a multilingual Whisper.
        decoder: Also give token ids, confidences and the decoder's posteriors.

    Raises:
        ValueError: If transformers is not installed or ``nbest`` is not within 1 to ``beam``.
        OSError: If the source is not there.
    """

    def __init__(
        self,
        source: str,
        *,
        device: str = "cpu",
        nbest: int = 1,
        beam: int = 5,
        precision: Precision = "fp32",
        language: str | None = None,
        task: str = "transcribe",
        decoder: bool = False,
    ) -> None:
        if nbest < 1:
            raise ValueError(f"nbest: expected at least 1 of a teacher that gives text alone, found {nbest}")
        check_search(nbest, beam)
        hf = _transformers()
        self._model = hf.AutoModelForSpeechSeq2Seq.from_pretrained(source).to(device).eval()
        self._extractor = hf.AutoFeatureExtractor.from_pretrained(source)
        self._tokenizer = hf.AutoTokenizer.from_pretrained(source)
        self.device = device
        self.nbest = nbest
        self.beam = beam
        self.precision = precision
        self.decoder = decoder
        self.vocabulary = TEXT_ONLY
        if decoder:
            size = int(self._model.config.vocab_size)
            self.vocabulary = Vocabulary((*tokens_of(self._tokenizer, size), "<blank>"), size)
        self.sample_rate_hz = int(self._extractor.sampling_rate)
        self.frame_shift_s = 0.0
        self.language = language
        self.task = task
        options = {"nbest": nbest, "beam": beam, "precision": precision, "language": language, "task": task}
        options |= {"decoder": True} if decoder else {}
        self.identity = teacher_identity(type(self._model).__name__, self._model, self.vocabulary, options)

    @torch.no_grad()
    def __call__(self, batch: SpeechBatch) -> TeacherTargets:
        """N-best lists, and the decoder's posteriors where asked for.

        Raises:
            ValueError: If an utterance is longer than the model hears.
        """
        inputs = self._features(batch)
        with autocast(self.device, self.precision):
            heard = inputs[self._model.main_input_name]
            prompt = self._prompt(heard)
            # Whisper's own generate gives the best of one search N times over where N sequences are asked for.
            sequences = _transformers().GenerationMixin.generate(
                self._model,
                **inputs,
                num_beams=self.beam,
                num_return_sequences=self.nbest,
                **({} if prompt is None else {"decoder_input_ids": prompt}),
            )
            said, log_probs = self._forced(heard, sequences, 1 if prompt is None else prompt.shape[1])
        steps = log_probs.gather(2, said[:, :, None]).squeeze(2)
        ends = said == self._model.generation_config.eos_token_id
        after = ends.cumsum(1) - ends.long() > 0  # what stands behind the first end is padding
        totals = steps.masked_fill(after, 0.0).sum(1)
        counts = (~ends & ~after).sum(1)
        texts = self._tokenizer.batch_decode(sequences, skip_special_tokens=True)
        flat = [
            self._hypothesis(text, total, tokens[:count], step[:count])
            for text, total, tokens, step, count in zip(
                texts, totals.tolist(), said, steps, counts.tolist(), strict=True
            )
        ]
        order = totals.view(-1, self.nbest).argsort(1, descending=True)
        places = order + self.nbest * torch.arange(len(order), device=order.device)[:, None]
        lists = tuple(tuple(flat[place] for place in row) for row in places.tolist())
        if not self.decoder:
            return TeacherTargets(TEXT_ONLY, None, lists)
        best = places[:, 0]
        decoder, forced = _decoder_targets(said[best], log_probs[best], counts[best])
        return TeacherTargets(self.vocabulary, None, lists, decoder=decoder, decoder_tokens=forced)

    def _features(self, batch: SpeechBatch) -> Any:
        audio, lengths = at_rate(batch, self.sample_rate_hz)
        limit = getattr(self._extractor, "n_samples", None)
        rows = [audio[row, :samples].cpu().numpy() for row, samples in enumerate(lengths.tolist())]
        for utterance, row in zip(batch.ids, rows, strict=True):
            if limit is not None and len(row) > limit:
                raise ValueError(
                    f"utterance {utterance}: expected at most {limit / self.sample_rate_hz:g} s for this teacher, "
                    f"found {len(row) / self.sample_rate_hz:.1f} s"
                )
        return self._extractor(
            rows, sampling_rate=self.sample_rate_hz, return_tensors="pt", return_attention_mask=True
        ).to(self.device)

    def _hypothesis(self, text: str, total: float, tokens: Tensor, steps: Tensor) -> Hypothesis:
        if not self.decoder:
            return Hypothesis((), text.strip(), total)
        return Hypothesis(tuple(tokens.tolist()), text.strip(), total, None, tuple(steps.exp().tolist()))

    def _prompt(self, heard: Tensor) -> Tensor | None:
        """Whisper's marks of language, task and no timestamps ``(B, P)``; ``None`` for other architectures."""
        if self._model.config.model_type != "whisper":
            return None
        config = self._model.generation_config
        columns = [torch.full((len(heard),), self._model.config.decoder_start_token_id, device=heard.device)]
        if getattr(config, "is_multilingual", False):
            columns.append(self._language_marks(heard))
            columns.append(torch.full_like(columns[0], config.task_to_id[self.task]))
        if getattr(config, "no_timestamps_token_id", None) is not None:
            columns.append(torch.full_like(columns[0], config.no_timestamps_token_id))
        return torch.stack(columns, 1)

    def _language_marks(self, heard: Tensor) -> Tensor:
        known = self._model.generation_config.lang_to_id
        if self.language is None:
            return self._model.detect_language(heard)
        if f"<|{self.language}|>" not in known:
            names = ", ".join(sorted(name.strip("<|>") for name in known))
            raise ValueError(f"language: expected one of {names}; found {self.language!r}")
        return torch.full((len(heard),), known[f"<|{self.language}|>"], device=heard.device)

    def _forced(self, heard: Tensor, sequences: Tensor, prompt_tokens: int) -> tuple[Tensor, Tensor]:
        """What was said ``(B·N, U)`` and the decoder's log-probabilities ``(B·N, U, V)`` forced on it.

        What ``generate`` reports are means that differ between versions.
        """
        encoded = self._model.get_encoder()(heard)[0].repeat_interleave(self.nbest, 0)
        logits = self._model(encoder_outputs=(encoded,), decoder_input_ids=sequences[:, :-1]).logits
        return sequences[:, prompt_tokens:], logits[:, prompt_tokens - 1 :].float().log_softmax(-1)


def huggingface_teacher(source: str, **options: Any) -> HuggingFaceCtcTeacher | HuggingFaceSeq2SeqTeacher:
    """The teacher that fits a source: CTC where transformers knows such a model for its architecture, else text.

    Args:
        source: Local folder or hub id.
        **options: Of the two classes.
    """
    hf = _transformers()
    config = hf.AutoConfig.from_pretrained(source)
    ctc = hf.models.auto.modeling_auto.MODEL_FOR_CTC_MAPPING_NAMES
    wrong, kind = ({"language", "task", "decoder"}, "CTC") if config.model_type in ctc else ({"hidden"}, "text alone")
    if unknown := sorted(wrong & set(options)):
        raise ValueError(f"{source}: {unknown[0]}: not of a model that gives {kind} ({config.model_type})")
    if config.model_type in ctc:
        return HuggingFaceCtcTeacher(source, **options)
    return HuggingFaceSeq2SeqTeacher(source, **options)


def _decoder_targets(said: Tensor, log_probs: Tensor, counts: Tensor) -> tuple[Frames, tuple[Tensor, Tensor]]:
    """Posteriors ``(B, U+1, V+1)``, a blank behind the tokens, and the labels they were forced on.

    Args:
        said: ``(B, L)`` tokens, an end and padding among them.
        log_probs: ``(B, L, V)`` of each.
        counts: ``(B,)`` tokens before the end.
    """
    # A hypothesis that was cut off has no end to predict: the last row predicts its last label then.
    lengths = counts.clamp(max=said.shape[1] - 1)
    most = int(lengths.max())
    blank = log_probs.new_full((len(said), most + 1, 1), -torch.inf)
    values = torch.cat((log_probs[:, : most + 1], blank), 2)
    labels = said[:, :most].masked_fill(torch.arange(most, device=said.device) >= lengths[:, None], 0)
    return Frames(values, lengths + 1, 0.0), (labels, lengths)


def _layer_numbers(hidden: Sequence[str], config: Any) -> dict[str, int]:
    """Layers by name; hidden states of transformers begin with what goes into the first block."""
    count = int(getattr(config, "encoder_config", config).num_hidden_layers)
    known = [f"layer.{number}" for number in range(count)]
    if unknown := [name for name in hidden if name not in known]:
        raise ValueError(f"hidden: expected {known[0]} to {known[-1]}, found {unknown[0]!r}")
    return {name: known.index(name) for name in hidden}


def tokens_of(tokenizer: Any, vocab_size: int) -> tuple[str, ...]:
    """Token strings by id; ids that the tokenizer does not know get a name of their own."""
    names: list[str] = []
    for i, name in enumerate(tokenizer.convert_ids_to_tokens(list(range(vocab_size)))):
        names.append(f"<{i}>" if name is None or name in names else str(name))
    return tuple(names)


def _blank_id(config: Any) -> int:
    blank = getattr(config, "ctc_blank_token_id", None)
    return int(config.pad_token_id if blank is None else blank)
