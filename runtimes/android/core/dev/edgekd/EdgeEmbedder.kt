package dev.edgekd

import java.io.File

/** A vector for a text; texts that mean the same have a large cosine. */
class EdgeEmbedder internal constructor(files: BundleFiles, threads: Int) : EdgeModel(files, threads, TASK) {
    /** The embedding, as the model gives it. */
    fun embed(text: String): FloatArray = alone { logits(encoder.encode(text)) }.flat()

    override fun answerGolden(text: String) = embed(text)

    companion object {
        const val TASK = "sentence-similarity"

        /** Open a bundle's folder; throws BundleError. On Android: `load(context)`. */
        @JvmStatic
        @JvmOverloads
        fun load(folder: File, threads: Int = 1) = load(FolderFiles(folder), threads)

        @JvmStatic
        @JvmOverloads
        fun load(files: BundleFiles, threads: Int = 1) = EdgeEmbedder(files, threads)
    }
}
