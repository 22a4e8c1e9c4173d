"""Log-mel and MFCC as plain layers, so that training and the exported file share one definition.

In the exported file the spectrum is a strided convolution with the windowed DFT basis, which onnxruntime runs faster than
its own STFT; in training it is an FFT, seven times faster. Every export compares the two. Frame t covers samples
[t * hop, t * hop + win) and nothing else: no centre padding, no utterance statistics. So a stream sees what a file sees.
"""

from __future__ import annotations

import warnings

import torch
import torchaudio.functional as AF
from torch import Tensor, nn

from asr.audio import SAMPLE_RATE
from asr.training import config

LOG_OFFSET = 1e-6  # added to mel energies before the logarithm; about the energy of 16-bit rounding noise
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
        samples = torch.arange(settings.win_length, dtype=torch.float64)
        angles = 2 * torch.pi / settings.n_fft * torch.outer(torch.arange(n_bins, dtype=torch.float64), samples)
        window = torch.hann_window(settings.win_length, periodic=True, dtype=torch.float64)
        basis = torch.cat([angles.cos(), angles.sin()]) * window
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of empty bands: an error below
            mel = AF.melscale_fbanks(
                n_bins, settings.f_min, settings.f_max, settings.n_mels, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
            )
        if bool((mel.sum(0) == 0).any()):
            raise config.ConfigError(
                f"features: expected each of {settings.n_mels} mel bands to cover a DFT bin, but some are empty; "
                "lower n_mels or raise n_fft"
            )
        # Not persistent: they follow from the settings, and stay out of checkpoints.
        self.register_buffer("window", window.float(), persistent=False)  # (win,)
        self.register_buffer("basis", basis.float()[:, None, :], persistent=False)  # (2 n_bins, 1, win)
        self.register_buffer("mel", mel, persistent=False)  # (n_bins, n_mels)
        self.window: Tensor
        self.basis: Tensor
        self.mel: Tensor

    def frames(self, n_samples: int) -> int:
        """How many frames N samples give."""
        return max(0, (n_samples - self.win_length) // self.hop_length + 1)

    def receptive_field(self) -> int:
        """Samples that one frame covers."""
        return self.win_length

    def forward(self, waveform: Tensor) -> Tensor:
        power = self._power_by_convolution(waveform) if torch.onnx.is_in_onnx_export() else self._power(waveform)
        return torch.log(power.transpose(1, 2) @ self.mel + LOG_OFFSET)

    def _power(self, waveform: Tensor) -> Tensor:
        """(B, N) -> (B, n_bins, T) power spectrum of each frame."""
        # torch.stft puts the window in the middle of n_fft samples: with as much in front, frame t starts at t * hop.
        before = (self.n_fft - self.win_length) // 2
        padded = nn.functional.pad(waveform, (before, self.n_fft - self.win_length - before))
        spectrum = torch.stft(
            padded, self.n_fft, self.hop_length, self.win_length, self.window, center=False, return_complex=True
        )
        return spectrum.real.square() + spectrum.imag.square()

    def _power_by_convolution(self, waveform: Tensor) -> Tensor:
        """The same, of operators that run fast in an exported file."""
        real, imaginary = nn.functional.conv1d(waveform[:, None, :], self.basis, stride=self.hop_length).chunk(2, dim=1)
        return real.square() + imaginary.square()


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
    return Mfcc(settings) if settings.kind == "mfcc" else LogMel(settings)
