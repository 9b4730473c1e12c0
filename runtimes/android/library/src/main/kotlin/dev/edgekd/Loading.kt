package dev.edgekd

import android.content.Context
import kotlin.concurrent.thread
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.job
import kotlinx.coroutines.withContext

/**
 * Opens the bundle among the app's assets, off the calling thread; with `warmUp` the first and slowest inference is
 * over when it returns. Throws BundleError.
 */
suspend fun EdgeClassifier.Companion.load(
    context: Context,
    name: String? = null,
    threads: Int = 1,
    warmUp: Boolean = true,
): EdgeClassifier = opened(warmUp) { load(AssetFiles(context.applicationContext, name), threads) }

/** As [EdgeClassifier.Companion.load]. */
suspend fun EdgeTagger.Companion.load(
    context: Context,
    name: String? = null,
    threads: Int = 1,
    warmUp: Boolean = true,
): EdgeTagger = opened(warmUp) { load(AssetFiles(context.applicationContext, name), threads) }

/** As [EdgeClassifier.Companion.load]. */
suspend fun EdgeAnswerer.Companion.load(
    context: Context,
    name: String? = null,
    threads: Int = 1,
    warmUp: Boolean = true,
): EdgeAnswerer = opened(warmUp) { load(AssetFiles(context.applicationContext, name), threads) }

/** As [EdgeClassifier.Companion.load]. */
suspend fun EdgeEmbedder.Companion.load(
    context: Context,
    name: String? = null,
    threads: Int = 1,
    warmUp: Boolean = true,
): EdgeEmbedder = opened(warmUp) { load(AssetFiles(context.applicationContext, name), threads) }

private suspend fun <Model : EdgeModel> opened(warmUp: Boolean, make: () -> Model): Model {
    var model: Model? = null
    try {
        return withContext(Dispatchers.Default) {
            make().also {
                model = it
                if (warmUp) it.warmUp()
            }
        }
    } catch (error: Throwable) {
        model?.close()  // cancelled, or the first inference failed: nobody else could
        throw error
    }
}

/** A call off the calling thread: `classifier.inBackground { classify(text) }`. */
suspend fun <Model : EdgeModel, Result> Model.inBackground(call: Model.() -> Result): Result =
    withContext(Dispatchers.Default) { call() }

/** Closes the model when the scope is over: `viewModelScope`, or `lifecycleScope` of an activity. */
fun <Model : EdgeModel> Model.closeWith(scope: CoroutineScope): Model {
    // In a thread of its own, for it waits for the call under way, and scopes end on the main thread.
    scope.coroutineContext.job.invokeOnCompletion { thread(name = "edgekd close") { close() } }
    return this
}
