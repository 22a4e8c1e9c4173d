// The microphone's samples -> messages of 100 ms of 16-bit ones, with their level.
class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.samples = new Int16Array(Math.round(sampleRate / 10));
    this.filled = 0;
    this.energy = 0;
  }

  process([input]) {
    const channel = input[0];
    if (!channel) return true;
    for (const value of channel) {
      const clipped = Math.max(-1, Math.min(1, value));
      this.samples[this.filled++] = Math.round(clipped * 32767);
      this.energy += clipped * clipped;
      if (this.filled === this.samples.length) {
        const level = 10 * Math.log10(this.energy / this.filled + 1e-12);
        this.port.postMessage({ samples: this.samples, level }, [this.samples.buffer]);
        this.samples = new Int16Array(Math.round(sampleRate / 10));
        this.filled = 0;
        this.energy = 0;
      }
    }
    return true;
  }
}

registerProcessor("capture", Capture);
