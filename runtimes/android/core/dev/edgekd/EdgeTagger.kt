package dev.edgekd

import dev.edgekd.text.AlignedText
import dev.edgekd.text.Encoding
import dev.edgekd.text.Places
import dev.edgekd.text.splitBert
import java.io.File

/** A labelled part of a text: `text.substring(start, end)`. */
data class Span(val label: String, val start: Int, val end: Int, val text: String, val score: Double)

/** Labelled spans of a text, from one BIO tag a word. */
class EdgeTagger internal constructor(files: BundleFiles, threads: Int) : EdgeModel(files, threads, TASK) {
    private class Word(val start: Int, val end: Int)

    private class Tag(val name: String, val score: Double)

    /** In the order of the text. */
    fun tag(text: String): List<Span> {
        val (encoding, logits) = alone { encode(text).let { Pair(it, logits(it)) } }
        val words = wordsOf(text)
        val tags = firstTokens(encoding, words).map { tagOf(if (it == null) null else logits.row(it)) }
        return spansOf(tags.map { it.name }).map { (label, words_) ->
            val start = words[words_.first].start
            val end = words[words_.last].end
            Span(label, start, end, text.substring(start, end), words_.map { tags[it].score }.average())
        }
    }

    override fun answerGolden(text: String) = tag(text)

    private fun wordsOf(text: String): List<Word> {
        val aligned = AlignedText.of(text)
        val places = Places(aligned.text)
        return splitBert(aligned).map { Word(places[it.startOf(0)], places[it.endOf(it.size - 1)]) }
    }

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

    /** The first token that overlaps each word; null where there is none. Both are in the order of the text. */
    private fun firstTokens(encoding: Encoding, words: List<Word>): List<Int?> {
        val tokens = encoding.ids.indices.filter { encoding.ends[it] > encoding.starts[it] }
        var at = 0
        return words.map { word ->
            while (at < tokens.size && encoding.ends[tokens[at]] <= word.start) at++
            tokens.getOrNull(at)?.takeIf { encoding.starts[it] < word.end }
        }
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
