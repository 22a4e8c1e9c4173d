"""Log-mel and MFCC as plain layers, so that training and the exported file share one definition.

Frame t covers samples [t * hop, t * hop + win) and nothing else: no centre padding, no utterance statistics. So a stream
sees what a file sees. In training the spectrum is an FFT. onnxruntime's is slow, so that in the exported file it is a matrix
product with the DFT basis; every export compares the two.
"""

from __future__ import annotations

import warnings

import torch
import torchaudio.functional as AF
from torch import Tensor, nn

from asr.audio import SAMPLE_RATE
from asr.errors import ConfigError
from asr.training import config

LOG_OFFSET = 1e-6  # added to mel energies before the logarithm; about the energy of 16-bit rounding noise
_FLOOR = 1e-13  # of Whisper's mel energies; its own is 1e-10, which the 80 dB below faint speech lie under
_DELTA_REACH = 2  # frames on each side in a regression delta


class LogMel(nn.Module):
    """Logarithm of mel-band energies.

    forward: (B, N) float32 waveform, 16 kHz -> (B, T, n_mels) float32, T = frames(N).
    formula: log(mel @ |DFT(hann * frame)|^2 + 1e-6); Slaney's mel scale and area norm, as in librosa.
    source:  Davis & Mermelstein 1980, "Comparison of parametric representations for monosyllabic word recognition".
    """

    def __init__(self, settings: config.Features) -> None:
        super().__init__()
        self.size = settings.n_mels
        self.n_fft, self.hop_length, self.win_length = settings.n_fft, settings.hop_length, settings.win_length
        n_bins = settings.n_fft // 2 + 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of empty bands: an error below
            mel = AF.melscale_fbanks(
                n_bins, settings.f_min, settings.f_max, settings.n_mels, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
            )
        if bool((mel.sum(0) == 0).any()):
            raise ConfigError(
                f"features: expected each of {settings.n_mels} mel bands to cover a DFT bin, but some are empty; "
                "lower n_mels or raise n_fft"
            )
        self._leave_out(mel)
        # Not persistent: they follow from the settings, and stay out of checkpoints.
        self.register_buffer("window", torch.hann_window(settings.win_length, periodic=True), persistent=False)
        self.register_buffer("mel", mel, persistent=False)  # (n_bins, n_mels)
        self.window: Tensor
        self.mel: Tensor
        # For `_mel_energies_by_products`: the windowed DFT basis of samples 1 to win / 2 in the bins of the mel bands.
        win, used = settings.win_length, mel.sum(1).nonzero()[:, 0]
        samples = torch.arange(1, win // 2 + 1, dtype=torch.float64)
        angles = 2 * torch.pi / settings.n_fft * torch.outer(samples - win / 2, used.double())
        weights = torch.hann_window(win, periodic=True, dtype=torch.float64)[1 : win // 2 + 1, None]
        if win % 2 == 0:
            weights[-1] /= 2  # the middle sample is its own partner
        self.register_buffer("cosines", (weights * angles.cos()).float(), persistent=False)  # (win / 2, bins)
        self.register_buffer("sines", (weights * angles.sin()).float(), persistent=False)
        self.register_buffer("used_mel", mel[used], persistent=False)  # (bins, n_mels)
        self.cosines: Tensor
        self.sines: Tensor
        self.used_mel: Tensor

    def _leave_out(self, mel: Tensor) -> None:
        """Set to zero what the mel bands, (n_bins, n_mels), are not to hear."""

    def frames(self, n_samples: int) -> int:
        """How many frames N samples give."""
        return max(0, (n_samples - self.win_length) // self.hop_length + 1)

    def receptive_field(self) -> int:
        """Samples that one frame covers."""
        return self.win_length

    def forward(self, waveform: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return self._log(self._mel_energies_by_products(waveform))
        # torch.stft puts the window in the middle of n_fft samples: with as much in front, frame t starts at t * hop.
        before = (self.n_fft - self.win_length) // 2
        padded = nn.functional.pad(waveform, (before, self.n_fft - self.win_length - before))
        spectrum = torch.stft(
            padded, self.n_fft, self.hop_length, self.win_length, self.window, center=False, return_complex=True
        )
        power = spectrum.real.square() + spectrum.imag.square()  # (B, n_bins, T)
        return self._log(power.transpose(1, 2) @ self.mel)

    def _log(self, energies: Tensor) -> Tensor:
        return torch.log(energies + LOG_OFFSET)

    def _mel_energies_by_products(self, waveform: Tensor) -> Tensor:
        """(B, N) -> (B, T, n_mels) mel energies, of operators that run fast in an exported file.

        Against the middle of the frame the window and the cosines are even and the sines odd. So sample i and sample
        win - i of a frame share their factors: their sum goes with the cosines, their difference with the sines, which
        halves the products. (The phase that moves with the middle is not in the power.) Bins outside the mel bands are
        left out.
        """
        win, hop = self.win_length, self.hop_length
        frames = (waveform.shape[1] - win) // hop + 1
        # Frames overlap: each is made of pieces of a hop.
        starts = range(0, win, hop)
        waveform = nn.functional.pad(waveform, (0, starts[-1] + hop - win))
        pieces = [waveform[:, start : start + frames * hop].reshape(len(waveform), -1, hop) for start in starts]
        frame = torch.cat(pieces, dim=2)[:, :, :win]
        half = win // 2
        left, right = frame[:, :, 1 : half + 1], frame[:, :, win - half :].flip(2)  # at sample 0 the window is 0
        power = ((left + right) @ self.cosines).square() + ((left - right) @ self.sines).square()
        return power @ self.used_mel


class WhisperLogMel(LogMel):
    """The front end of Whisper's encoder, but for the level, which `encoder.level` sets.

    formula: log10(max(mel @ |DFT(hann * frame)|^2, 1e-13)), without the bins at 0 and 40 Hz. A constant offset of
             the samples has nothing above them, so that it changes no feature.
    source:  Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision".
    """

    MEAN, STD = -4.0, 4.0  # of Whisper's scale

    def _leave_out(self, mel: Tensor) -> None:
        mel[:2] = 0

    def _log(self, energies: Tensor) -> Tensor:
        return energies.clamp(min=_FLOOR).log10()


class Mfcc(nn.Module):
    """Mel-frequency cepstral coefficients, optionally with regression deltas.

    forward: (B, N) float32 waveform, 16 kHz -> (B, T, n_mfcc * (1 + deltas)) float32.
             Each order of deltas costs 2 frames at either end: frames beyond the signal are not made up.
    formula: orthonormal DCT-II of the log-mel energies; delta_t = sum_n n (c_{t+n} - c_{t-n}) / (2 sum_n n^2), n = 1, 2.
    source:  Davis & Mermelstein 1980; Furui 1986 for the deltas.
    """

    def __init__(self, settings: config.Features) -> None:
        super().__init__()
        self.log_mel = LogMel(settings)
        self.deltas = settings.deltas
        self.size = settings.n_mfcc * (1 + settings.deltas)
        self.hop_length = settings.hop_length
        dct = AF.create_dct(settings.n_mfcc, settings.n_mels, norm="ortho")
        taps = torch.arange(-_DELTA_REACH, _DELTA_REACH + 1, dtype=torch.float32)
        self.register_buffer("dct", dct, persistent=False)  # (n_mels, n_mfcc)
        self.register_buffer("taps", (taps / taps.square().sum())[None, None, :, None], persistent=False)
        self.dct: Tensor
        self.taps: Tensor

    def frames(self, n_samples: int) -> int:
        """How many frames N samples give."""
        return max(0, self.log_mel.frames(n_samples) - 2 * _DELTA_REACH * self.deltas)

    def receptive_field(self) -> int:
        """Samples that one frame covers."""
        return self.log_mel.receptive_field() + 2 * _DELTA_REACH * self.deltas * self.hop_length

    def forward(self, waveform: Tensor) -> Tensor:
        orders = [self.log_mel(waveform) @ self.dct]
        for _ in range(self.deltas):
            orders.append(nn.functional.conv2d(orders[-1][:, None], self.taps)[:, 0])
        # Order i starts 2 i frames later than the cepstra: cut all to the frames that every order has.
        cuts = [_DELTA_REACH * (self.deltas - i) for i in range(self.deltas + 1)]
        trimmed = [order[:, cut : order.shape[1] - cut] for order, cut in zip(orders, cuts, strict=True)]
        return torch.cat(trimmed, dim=2)


def build(settings: config.Features) -> LogMel | Mfcc:
    """The front end that the settings ask for."""
    if settings.kind == "mfcc":
        return Mfcc(settings)
    return WhisperLogMel(settings) if settings.kind == "whisper" else LogMel(settings)
