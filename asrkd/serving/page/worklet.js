// Hands the microphone's samples to the page in pieces of about 40 ms.
class Tap extends AudioWorkletProcessor {
  constructor() { super(); this.held = []; this.count = 0; }
  process(inputs) {
    const channel = inputs[0][0];
    if (channel) {
      this.held.push(channel.slice());
      this.count += channel.length;
      if (this.count >= sampleRate / 25) {
        const piece = new Float32Array(this.count);
        let at = 0;
        for (const part of this.held) { piece.set(part, at); at += part.length; }
        this.port.postMessage(piece, [piece.buffer]);
        this.held = []; this.count = 0;
      }
    }
    return true;
  }
}
registerProcessor("tap", Tap);
