package dev.edgekd

import java.io.File

/** A label and its probability. */
data class Scored(val label: String, val score: Double)

/** One label for a text. */
class EdgeClassifier internal constructor(files: BundleFiles, threads: Int) : EdgeModel(files, threads, TASK) {
    /** The `topK` labels with their probabilities, best first. */
    fun classify(text: String, topK: Int = 3): List<Scored> {
        val shares = softmax(alone { logits(encoder.encode(text)) }.flat())
        return shares.indices.sortedByDescending { shares[it] }.take(topK).map { Scored(settings.labels[it], shares[it]) }
    }

    override fun answerGolden(text: String) = classify(text)

    companion object {
        const val TASK = "text-classification"

        /** Open a bundle's folder; throws BundleError. On Android: `load(context)`. */
        @JvmStatic
        @JvmOverloads
        fun load(folder: File, threads: Int = 1) = load(FolderFiles(folder), threads)

        @JvmStatic
        @JvmOverloads
        fun load(files: BundleFiles, threads: Int = 1) = EdgeClassifier(files, threads)
    }
}
