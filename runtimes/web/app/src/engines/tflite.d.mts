export interface Quantization {
  scale: number;
  zero: number;
}

/** By signature (of a file without signatures: of its first graph); 1 and 0 where not quantized. */
export function outputQuantization(bytes: Uint8Array): Quantization[];
