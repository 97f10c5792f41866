"""What stands before the models: text is normalised and cut, recordings become tokens and features."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
import torchaudio
from utils.file_utils import load_wav
from utils.glm_g2p import G2P_zh, is_chinese, process_one
from utils.speaker import describe

from cosyvoice.utils.frontend_utils import (
    PUNCTUATION_CHARS,
    contains_chinese,
    emoji_norm,
    ensure_proper_ending,
    markdown_norm,
    multi_line_process,
    normalize_punctuation,
    remove_bracket,
    replace_asterisk_with_multiply,
    special_replace,
    spell_out_number,
    split_hard,
    split_into_min_sentence,
    tn_scientific_notation,
)

try:
    import ttsfrd

    use_ttsfrd = True
except ImportError:
    print("no ttsfrd here")
    from tn.chinese.normalizer import Normalizer as ZhNormalizer
    from tn.english.normalizer import Normalizer as EnNormalizer

    use_ttsfrd = False

_STEP_S = 30
_RATE = 16_000


class SpeechTokenizer:
    def __init__(self, model: Any, feature_extractor: Any) -> None:
        self.model = model
        self.feature_extractor = feature_extractor
        #: Grows with each rate.
        self._resample_buffer: dict[int, torchaudio.transforms.Resample] = {}

    def extract_speech_token(self, utts: list[str | tuple[torch.Tensor, int]]) -> list[list[int]]:
        """The tokens of each recording, which is a path, or samples with their rate."""
        assert isinstance(utts, list)
        with torch.no_grad():
            pieces, owners = [], []
            for number, utt in enumerate(utts):
                audio, rate = utt if isinstance(utt, tuple) else torchaudio.load(utt)
                audio = audio.cuda()
                if rate != _RATE:
                    if rate not in self._resample_buffer:
                        resample = torchaudio.transforms.Resample(orig_freq=rate, new_freq=_RATE)
                        self._resample_buffer[rate] = resample.to("cuda")
                    audio = self._resample_buffer[rate](audio)
                samples = audio[0].cpu().numpy()
                for begin in range(0, len(samples), _STEP_S * _RATE):
                    pieces.append(samples[begin : begin + _STEP_S * _RATE])
                    owners.append(number)
            pooling = self.model.config.pooling_kernel_size or 1
            halving = self.model.conv1.stride[0] * self.model.conv2.stride[0]
            features = self.feature_extractor(
                pieces,
                sampling_rate=_RATE,
                return_attention_mask=True,
                return_tensors="pt",
                device="cuda",
                padding="longest",
                pad_to_multiple_of=halving * pooling * self.feature_extractor.hop_length,
            ).to(device="cuda")
            drawn = self.model(**features).quantized_token_ids
            mask = features.attention_mask[:, ::halving][:, ::pooling].bool()
            assert mask.shape == drawn.shape
            tokens: list[list[int]] = [[] for _ in utts]
            for row, owner in enumerate(owners):
                tokens[owner].extend(drawn[row][mask[row]].tolist())
            return tokens


class TextFrontEnd:
    def __init__(self, use_phoneme: bool = False) -> None:
        self.PUNCTUATION_CHARS = PUNCTUATION_CHARS
        self.use_ttsfrd = use_ttsfrd
        if use_phoneme:
            self.text_tokenizer = G2P_zh()
        if use_ttsfrd:
            raise RuntimeError(f"{ttsfrd.__file__}: the stand-in has no use for it")
        self.zh_tn_model = ZhNormalizer(
            remove_erhua=False, full_to_half=True, remove_interjections=False, overwrite_cache=True
        )
        self.en_tn_model = EnNormalizer()
        self.use_phoneme = use_phoneme
        if use_phoneme:
            configs = Path(__file__).absolute().parents[2] / "configs"
            self.able_list = json.loads((configs / "G2P_able_1word.json").read_text(encoding="utf-8"))
            self.replace_dict: dict[str, str] = {}
            for line in (configs / "G2P_replace_dict.jsonl").read_text(encoding="utf-8").splitlines():
                if line.strip():
                    self.replace_dict.update(json.loads(line))
        self.inflect_parser = object()

    def text_normalize(self, text: str | None) -> str | None:
        if text is None:
            return None
        text = self._preprocess_text(text)
        if contains_chinese(text):
            text = self._normalize_chinese_text(text).lower()
        else:
            text = self._normalize_english_text(text)
        return ensure_proper_ending(normalize_punctuation(text, self.PUNCTUATION_CHARS))

    def _preprocess_text(self, text: str) -> str:
        text = emoji_norm(multi_line_process(markdown_norm(text)))
        return re.sub("(?<=[a-zA-Z])-(?=[a-zA-Z])", " ", text)

    def _normalize_chinese_text(self, text: str) -> str:
        return self.post_replace(special_replace(self.zh_tn_model.normalize(self.pre_replace(text))))

    def pre_replace(self, sentence: str) -> str:
        sentence = tn_scientific_notation(sentence)
        sentence = re.sub(r"(?<=\d)\s*-\s*(?=\d)", "减", sentence).replace("-", "")
        custom = Path("./configs/custom_replace.jsonl")
        if custom.exists():
            for line in custom.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                sentence = sentence.replace(entry["origin"], entry["new"])
        return sentence

    def post_replace(self, sentence: str) -> str:
        sentence = remove_bracket(sentence).replace("——", "，")
        sentence = re.sub("[,:：;；、]+", "，", sentence)
        sentence = re.sub("[.…]+", "。", sentence)
        return re.sub(r"""[_·'"‘’“”|]+""", "", sentence)

    def _normalize_english_text(self, text: str) -> str:
        text = self.en_tn_model.normalize(text.replace("'", "’"))
        text = replace_asterisk_with_multiply(remove_bracket(text, "en"), "en").replace("—", " ").replace("’", "'")
        text = re.sub(r"\s+", " ", spell_out_number(text, self.inflect_parser))
        text = re.sub(r"[^\w\s.,!?':;]", "", text).lower()
        text = re.sub(r"([.,!?':;])\1+", r"\1", text)
        return re.sub(r"\s*([.,?!':;])\s*", r"\1 ", text).strip()

    def split_by_len(self, text: str, min_text_len: int = 30, max_text_len: int = 60) -> list[str]:
        sentences, _ = split_into_min_sentence(text, min_text_len)
        return ["".join(units) for units in split_hard(sentences, max_text_len)]

    def g2p_infer(self, text: str) -> str:
        """With phonemes for the entries of the dictionary, and for Chinese characters that are not on the list."""
        parts = re.split("(" + "|".join(map(re.escape, sorted(self.replace_dict, key=len, reverse=True))) + ")", text)
        said = []
        for part in parts:
            if part in self.replace_dict:
                said.append(self.replace_dict[part])
                continue
            for char in part:
                rare = is_chinese(char) and char not in self.able_list
                said.append("".join(f"<|{ph}|>" for ph in process_one(char, self.text_tokenizer)) if rare else char)
        return "".join(said)


class TTSFrontEnd:
    def __init__(
        self,
        tokenize_fn: Callable[[str], list[int]],
        speech_tokenizer: SpeechTokenizer,
        feat_extractor: Callable[[torch.Tensor], torch.Tensor],
        campplus_model: str,
        spk2info: str = "",
        device: torch.device | None = None,
    ) -> None:
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenize_fn = tokenize_fn
        self.feat_extractor = feat_extractor
        option = onnxruntime.SessionOptions()
        option.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        option.intra_op_num_threads = 1
        self.campplus_session = onnxruntime.InferenceSession(
            campplus_model, sess_options=option, providers=["CPUExecutionProvider"]
        )
        self.speech_tokenizer = speech_tokenizer
        if Path(spk2info).exists():
            self.spk2info = torch.load(spk2info, map_location=self.device)

    def _extract_text_token(self, text: str) -> torch.Tensor:
        return torch.tensor([self.tokenize_fn(text)], dtype=torch.int32).to(self.device)

    def _extract_speech_token(self, path_or_tuple: list[Any]) -> torch.Tensor:
        return torch.tensor(self.speech_tokenizer.extract_speech_token(path_or_tuple)).to(self.device)

    def _extract_spk_embedding(self, speech: str | torch.Tensor) -> torch.Tensor:
        samples = load_wav(speech, _RATE) if isinstance(speech, str) else speech
        return torch.tensor([describe(samples.cpu()[0], _RATE)]).to(self.device)

    def _extract_speech_feat(self, speech: str | torch.Tensor, sample_rate: int = 24_000) -> torch.Tensor:
        samples = load_wav(speech, sample_rate) if isinstance(speech, str) else speech
        feat = self.feat_extractor(samples.to(self.device)).squeeze(dim=0).transpose(0, 1).to(self.device)
        return feat.unsqueeze(dim=0)
