import { describe, expect, it } from "vitest";
import { InputQueue, MAX_WAITING, WINDOW } from "../src/terminal/input";

const decoder = new TextDecoder();
const texts = (messages: Uint8Array[]) => messages.map((bytes) => JSON.parse(decoder.decode(bytes)).data as string);
const size = (messages: Uint8Array[]) => messages.reduce((sum, bytes) => sum + bytes.length, 0);

describe("input of a terminal", () => {
  it("is sent once, and again on the next connection until it was taken", () => {
    const queue = new InputQueue();
    queue.type("ls");
    queue.type("\r");
    const sent = queue.next();
    expect(texts(sent)).toEqual(["ls", "\r"]);
    expect(queue.next()).toEqual([]);
    queue.took(sent[0]!.length);
    queue.restart();
    expect(texts(queue.next())).toEqual(["\r"]);
  });

  it("counts what was sent aside in the stream", () => {
    const queue = new InputQueue();
    queue.restart();
    queue.sentAside(26);
    queue.type("a");
    const [message] = queue.next();
    queue.took(26);
    expect(queue.bytes).toBe(message!.length);
    queue.took(26 + message!.length);
    expect(queue.bytes).toBe(0);
  });

  it("never has much more under way than the window", () => {
    const queue = new InputQueue();
    expect(queue.type("x".repeat(1_000_000))).toBe(true);
    let taken = 0;
    let received = "";
    for (let round = 0; round < 100 && received.length < 1_000_000; round++) {
      const sent = queue.next();
      expect(size(sent)).toBeLessThanOrEqual(WINDOW + 20_000);
      received += texts(sent).join("");
      taken += size(sent);
      queue.took(taken);
    }
    expect(received).toBe("x".repeat(1_000_000));
    expect(queue.bytes).toBe(0);
  });

  it("does not cut characters in two", () => {
    const queue = new InputQueue();
    queue.type("a" + "😀".repeat(20_000));
    expect(texts(queue.next()).join("")).toBe("a" + "😀".repeat(20_000));
  });

  it("is refused as a whole when it is too much", () => {
    const queue = new InputQueue();
    expect(queue.type("x".repeat(MAX_WAITING))).toBe(false);
    expect(queue.bytes).toBe(0);
    expect(queue.type("still")).toBe(true);
  });
});
