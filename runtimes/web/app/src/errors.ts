/** The bundle is not one, is for another task, does not arrive whole, or its runtime does not start; the message says what to do. */
export class BundleError extends Error {
  override readonly name = "BundleError";
}

/** An error's message, whatever was thrown. */
export function told(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
