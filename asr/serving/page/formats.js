// Words with their times -> files. A word is {text, start_s, end_s, confidence}.

const LINE = 42, LONGEST_S = 6, GAP_S = 0.8;

// Words that are shown together: two lines at most, not too long, no long pause within.
function cues(words) {
  const found = [];
  let cue = [];
  for (const word of words) {
    const last = cue.at(-1);
    const text = cue.map((one) => one.text).join(" ");
    const full = last && (text.length + 1 + word.text.length > 2 * LINE || word.end_s - cue[0].start_s > LONGEST_S
      || word.start_s - last.end_s >= GAP_S);
    if (full) { found.push(cue); cue = []; }
    cue.push(word);
  }
  return cue.length ? [...found, cue] : found;
}

function lines(cue) {
  const rows = [""];
  for (const { text } of cue) {
    const row = rows.at(-1);
    if (row && row.length + 1 + text.length > LINE && rows.length < 2) rows.push(text);
    else rows[rows.length - 1] = row ? `${row} ${text}` : text;
  }
  return rows.join("\n");
}

function clock(seconds, point) {
  const ms = Math.round(seconds * 1000);
  const part = (value, size) => String(value).padStart(size, "0");
  const time = [Math.floor(ms / 3600000), Math.floor(ms / 60000) % 60, Math.floor(ms / 1000) % 60];
  return time.map((value) => part(value, 2)).join(":") + point + part(ms % 1000, 3);
}

function subtitles(words, point, numbered) {
  return cues(words).map((cue, index) => {
    const times = `${clock(cue[0].start_s, point)} --> ${clock(cue.at(-1).end_s, point)}`;
    return (numbered ? `${index + 1}\n` : "") + `${times}\n${lines(cue)}\n`;
  }).join("\n");
}

// 16-bit samples, one channel.
function wav(pieces, rate) {
  const size = pieces.reduce((sum, piece) => sum + piece.byteLength, 0);
  const head = new DataView(new ArrayBuffer(44));
  const text = (at, value) => [...value].forEach((letter, index) => head.setUint8(at + index, letter.charCodeAt(0)));
  text(0, "RIFF"); head.setUint32(4, 36 + size, true); text(8, "WAVEfmt ");
  head.setUint32(16, 16, true); head.setUint16(20, 1, true); head.setUint16(22, 1, true);
  head.setUint32(24, rate, true); head.setUint32(28, 2 * rate, true);
  head.setUint16(32, 2, true); head.setUint16(34, 16, true);
  text(36, "data"); head.setUint32(40, size, true);
  return new Blob([head.buffer, ...pieces], { type: "audio/wav" });
}

const plain = (text) => new Blob([text], { type: "text/plain;charset=utf-8" });

export const WRITERS = {
  txt: ({ texts }) => plain(texts.join("\n") + "\n"),
  srt: ({ words }) => plain(subtitles(words, ",", true)),
  vtt: ({ words }) => plain("WEBVTT\n\n" + subtitles(words, ".", false)),
  json: ({ texts, words }) => plain(JSON.stringify({ text: texts.join(" "), words }, null, 2) + "\n"),
  wav: ({ sound, rate }) => wav(sound, rate),
};
