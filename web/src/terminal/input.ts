// What was typed and is not yet with the agent. No DOM.

/** Bytes that may wait while there is no connection. A paste that is larger is refused as a whole: half of one would be
 * worse than none. */
export const MAX_WAITING = 4 * 1024 * 1024;
/** Bytes under way that the server has not taken yet. */
export const WINDOW = 256 * 1024;
const PIECE = 16 * 1024;

const encoder = new TextEncoder();

interface Message {
  bytes: Uint8Array<ArrayBuffer>;
  /** Where its end is in the stream of a connection once it was sent; 0 before. */
  end: number;
}

/** Input in order. What was sent stays here until the server says that the agent has it, and is sent again on the next
 * connection: nothing that was typed is lost when a connection breaks. */
export class InputQueue {
  private messages: Message[] = [];
  private waiting = 0;
  private sent = 0;
  private taken = 0;

  get bytes(): number {
    return this.waiting;
  }

  /** False when there is no room. */
  type(data: string): boolean {
    // Every UTF-16 unit takes at most 3 bytes.
    if (this.waiting + data.length * 3 > MAX_WAITING) return false;
    for (let from = 0; from < data.length; ) {
      let to = Math.min(from + PIECE, data.length);
      // Not between the halves of a character.
      if (to < data.length && (data.charCodeAt(to) & 0xfc00) === 0xdc00) to += 1;
      const bytes = encoder.encode(JSON.stringify({ data: data.slice(from, to) }));
      this.messages.push({ bytes, end: 0 });
      this.waiting += bytes.length;
      from = to;
    }
    return true;
  }

  /** A new connection: everything that is here is to be sent on it. */
  restart(): void {
    this.sent = this.taken = 0;
    for (const message of this.messages) message.end = 0;
  }

  /** What may be sent now. */
  next(): Uint8Array<ArrayBuffer>[] {
    const out: Uint8Array<ArrayBuffer>[] = [];
    for (const message of this.messages) {
      if (message.end) continue;
      if (this.sent - this.taken >= WINDOW) break;
      this.sent += message.bytes.length;
      message.end = this.sent;
      out.push(message.bytes);
    }
    return out;
  }

  /** Bytes that do not come from here, such as a change of size, count in the stream, too. */
  sentAside(bytes: number): void {
    this.sent += bytes;
  }

  /** The server has handed so many bytes of this connection to the agent. */
  took(total: number): void {
    this.taken = total;
    let count = 0;
    for (const message of this.messages) {
      if (!message.end || message.end > total) break;
      this.waiting -= message.bytes.length;
      count += 1;
    }
    this.messages.splice(0, count);
  }
}
