package dev.edgekd

import java.io.File

/** A labelled part of a text: `text.substring(start, end)`. */
data class Span(val label: String, val start: Int, val end: Int, val text: String, val score: Double)

/** Labelled spans of a text, from one BIO tag a word. */
class EdgeTagger internal constructor(files: BundleFiles, threads: Int) : EdgeModel(files, threads, TASK) {
    private class Tag(val name: String, val score: Double)

    /** In the order of the text. */
    fun tag(text: String): List<Span> {
        val (encoding, logits) = alone { encoder.encode(text).let { Pair(it, logits(it)) } }
        val words = wordsOf(text)
        val tags = tokensOf(encoding, words).map { tagOf(it?.let { tokens -> logits.row(tokens.first) }) }
        return spansOf(tags.map { it.name }).map { (label, words_) ->
            val start = words[words_.first].start
            val end = words[words_.last].end
            Span(label, start, end, text.substring(start, end), words_.map { tags[it].score }.average())
        }
    }

    override fun answerGolden(text: String) = tag(text)

    /** A word that was cut off has no logits: all classes are equally likely there. */
    private fun tagOf(logits: FloatArray?): Tag {
        val labels = settings.labels
        if (logits == null || logits.all { it == 0f }) {
            return Tag(labels[maxOf(labels.indexOf("O"), 0)], 1.0 / labels.size)
        }
        val shares = softmax(logits)
        val best = shares.indices.maxByOrNull { logits[it] } ?: 0
        return Tag(labels[best], shares[best])
    }

    companion object {
        const val TASK = "token-classification"

        /** Open a bundle's folder; throws BundleError. On Android: `load(context)`. */
        @JvmStatic
        @JvmOverloads
        fun load(folder: File, threads: Int = 1) = load(FolderFiles(folder), threads)

        @JvmStatic
        @JvmOverloads
        fun load(files: BundleFiles, threads: Int = 1) = EdgeTagger(files, threads)
    }
}

/** Spans of BIO tags, as labels and words: one begins at B, and at an I that does not continue a span of its label. */
internal fun spansOf(tags: List<String>): List<Pair<String, IntRange>> {
    val found = ArrayList<Pair<String, IntRange>>()
    var before: String? = null
    tags.forEachIndexed { word, tag ->
        val kind = tag.substringBefore('-')
        val label = tag.substringAfter('-', "")
        if (kind == "I" && label == before) found[found.size - 1] = Pair(label, found.last().second.first..word)
        else if (kind != "O") found.add(Pair(label, word..word))
        before = if (kind == "O") null else label
    }
    return found
}
