/** The errors of this package, and the check for work that was stopped. */

/** What an error is about, as Python's subclasses of `InfGenError`. */
export type ErrorKind = "bundle" | "latent" | "plan" | "backend" | "decode" | "output" | "cancelled";

/** An error that this package raises on purpose. Its message says what was wrong and what to do, in one line. */
export class InfGenError extends Error {
  /** What the error is about. */
  readonly kind: ErrorKind;

  constructor(kind: ErrorKind, message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = "InfGenError";
    this.kind = kind;
  }
}

/**
 * Throw if work was stopped.
 *
 * @throws {InfGenError} of the kind `cancelled`.
 */
export function checkGoesOn(signal?: AbortSignal | null): void {
  if (signal?.aborted) throw new InfGenError("cancelled", "the work was stopped by its AbortSignal");
}

/** The message of anything that was thrown, in one line. */
export function oneLine(error: unknown): string {
  const text = error instanceof Error ? error.message || error.name : String(error);
  return text.split(/\s+/).join(" ").trim().slice(0, 300);
}
