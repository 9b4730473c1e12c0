// The files of a bundle: fetched as they stream in, checked against bundle.json, kept in the Cache API by their digests.
//
// bundle.json is asked for every time, so a new model is fetched anew and its predecessor dropped; without a network the
// copy of it that was seen last serves. A file whose SHA-256 is not the stated one is refused, and never kept.

import { BundleError, told } from "./errors.js";
import type { LoadOptions, Progress } from "./settings.js";

const SCHEMA = "edgekd/bundle/1";
const CACHE = "edgekd";
const MANIFEST = "bundle.json";

type Options = Pick<LoadOptions, "cache" | "onProgress" | "signal">;
type Manifest = { schema: string; place: string; files: Record<string, string> };

export class Files {
  private constructor(
    readonly base: string,
    private readonly manifest: Manifest,
    private readonly cache: Cache | null,
    private readonly options: Options,
  ) {}

  /** Reads bundle.json in the folder `url`; throws BundleError where there is none. */
  static async open(url: string, options: Options): Promise<Files> {
    const base = url.endsWith("/") ? url : `${url}/`;
    const cache = options.cache === false ? null : await opened();
    const manifest = await manifestOf(base, cache, options.signal);
    return new Files(base, manifest, cache, options);
  }

  /** Whether digests are checked: the browser's SHA-256 exists in secure contexts (https, localhost) alone. */
  get checked(): boolean {
    return globalThis.crypto?.subtle !== undefined;
  }

  async json(name: string): Promise<unknown> {
    const bytes = await this.bytes(name);
    try {
      return JSON.parse(new TextDecoder().decode(bytes));
    } catch (error) {
      throw new BundleError(`${this.base}${name}: not JSON (${told(error)})`);
    }
  }

  async bytes(name: string): Promise<Uint8Array<ArrayBuffer>> {
    const place = this.manifest.place ? `${this.manifest.place}/${name}` : name;
    const digest = this.manifest.files[place];
    if (digest === undefined) throw new BundleError(`${this.base}${MANIFEST} does not list ${place}: the bundle is not whole`);
    const path = place.split("/").map(encodeURIComponent).join("/");
    const url = `${this.base}${path}`;
    const key = `${url}?sha256=${digest}`;
    const kept = await this.kept(key, digest);
    if (kept) {
      this.options.onProgress?.({ file: name, loaded: kept.byteLength, total: kept.byteLength, cached: true });
      return kept;
    }
    const bytes = await downloaded(url, name, this.options);
    if (this.checked && (await sha256(bytes)) !== digest) {
      throw new BundleError(`${url} is not the file that ${MANIFEST} states (its SHA-256 differs): load it again, or deploy the whole bundle`);
    }
    await this.keep(key, url, bytes);
    return bytes;
  }

  private async kept(key: string, digest: string): Promise<Uint8Array<ArrayBuffer> | null> {
    const found = await this.cache?.match(key);
    if (!found) return null;
    const bytes = new Uint8Array(await found.arrayBuffer());
    if (!this.checked || (await sha256(bytes)) === digest) return bytes;
    await this.cache?.delete(key);
    return null;
  }

  private async keep(key: string, url: string, bytes: Uint8Array<ArrayBuffer>): Promise<void> {
    if (!this.cache) return;
    try {
      await this.cache.put(key, new Response(bytes));
      for (const { url: other } of await this.cache.keys()) {
        if (other !== key && other.startsWith(`${url}?sha256=`)) await this.cache.delete(other);
      }
    } catch {
      // The origin's quota is used up: the model works, and is fetched again the next time.
    }
  }
}

/** The cache, where there is one: in secure contexts, if the user allows it. */
async function opened(): Promise<Cache | null> {
  try {
    return await globalThis.caches.open(CACHE);
  } catch {
    return null;
  }
}

async function manifestOf(base: string, cache: Cache | null, signal: AbortSignal | undefined): Promise<Manifest> {
  const url = `${base}${MANIFEST}`;
  let response: Response;
  try {
    response = await fetch(url, { cache: "no-cache", signal: signal ?? null });
  } catch (error) {
    signal?.throwIfAborted();
    const seen = await cache?.match(url);
    if (!seen) throw new BundleError(`${url} cannot be fetched (${told(error)})`);
    response = seen;
  }
  if (!response.ok) throw new BundleError(`${base}: no bundle (${MANIFEST}: status ${response.status})`);
  const text = await response.text();
  let found: Manifest | null = null;
  try {
    found = JSON.parse(text) as Manifest;
  } catch {
    // A page that says "not found" with status 200.
  }
  if (found?.schema !== SCHEMA) throw new BundleError(`${base}: no bundle (${MANIFEST} is not of ${SCHEMA})`);
  await cache?.put(url, new Response(text)).catch(() => undefined);
  return found;
}

async function downloaded(url: string, file: string, { onProgress, signal }: Options): Promise<Uint8Array<ArrayBuffer>> {
  try {
    const response = await fetch(url, { cache: "no-cache", signal: signal ?? null });
    if (!response.ok || !response.body) throw new Error(`status ${response.status}`);
    // Of a compressed answer the header counts what travels, not what arrives here.
    const length = response.headers.has("Content-Encoding") ? null : response.headers.get("Content-Length");
    const total = length === null ? undefined : Number(length);
    const chunks: Uint8Array[] = [];
    let loaded = 0;
    const tell = (): void => onProgress?.({ file, loaded, total, cached: false } satisfies Progress);
    for (const reader = response.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      chunks.push(value);
      loaded += value.byteLength;
      tell();
    }
    if (loaded === 0) tell();
    const bytes = new Uint8Array(loaded);
    let at = 0;
    for (const chunk of chunks) {
      bytes.set(chunk, at);
      at += chunk.byteLength;
    }
    return bytes;
  } catch (error) {
    signal?.throwIfAborted();
    throw new BundleError(`${url} cannot be fetched (${told(error)})`);
  }
}

async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
