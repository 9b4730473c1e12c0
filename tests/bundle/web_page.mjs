// Asks a bundle's library on a test's page: loads a model, calls it, closes it, and tells all that was seen.

/** `{ values, about, progress }`, or `{ error, progress }`. */
export async function ask({ library, kind, url, options = {}, calls = [], abortAt = null, after = [] }) {
  const { BundleError, ...kinds } = await import(library);
  const progress = [];
  const ending = new AbortController();
  const onProgress = (one) => {
    progress.push(one);
    if (one.file === abortAt) ending.abort(new Error("no longer wanted"));
  };
  try {
    const model = await kinds[kind].load(url, { ...options, onProgress, signal: ending.signal });
    // At once: a model answers one question after the other, in their order.
    const values = await Promise.all(calls.map(([method, ...given]) => model[method](...given)));
    const about = { name: model.name, labels: [...model.labels], runtime: model.runtime };
    await model.close();
    for (const [method, ...given] of after) await model[method](...given);
    return { values, about, progress };
  } catch (error) {
    return { error: { bundle: error instanceof BundleError, message: error.message }, progress };
  }
}

/** What the Cache API holds, by path and query. */
export async function kept() {
  const cache = await caches.open("edgekd");
  return (await cache.keys()).map(({ url }) => url.slice(new URL(url).origin.length));
}
