package dev.edgekd

import dev.edgekd.text.Unicode
import dev.edgekd.text.UnicodeTables
import java.io.File

/** The answer is `context.substring(start, end)`; the empty text says that there is none. */
data class Answer(val text: String, val start: Int, val end: Int, val score: Double)

/** The words of a text that answer a question about it. */
class EdgeAnswerer internal constructor(files: BundleFiles, threads: Int) : EdgeModel(files, threads, TASK) {
    /** Of a unit of a window, [CLS] or a word: the logits and the probabilities that the answer starts and ends there. */
    private class Logits(val start: Double, val end: Double, val startShare: Double, val endShare: Double)

    /**
     * The best span of the context and its probability, or the empty text where the context has no answer and the
     * model was trained for that. A context longer than the model reads goes through it in windows that overlap; the
     * span with the largest sum of start and end logit wins, of at most `settings.longestAnswer` words.
     */
    fun answer(question: String, context: String): Answer = alone {
        val asked = cut(withoutGaps(question), settings.maxLength / 2)
        val words = wordsOf(context)
        val room = settings.maxLength - encoder.specialsOfPair - encoder.encodeBare(asked).ids.size
        var best = Double.NEGATIVE_INFINITY
        var found = Answer("", 0, 0, 0.0)
        var none = Pair(Double.POSITIVE_INFINITY, 0.0)
        for (window in windowsOf(context, words, room)) {
            val begin = words.getOrNull(window.first)?.start ?: 0
            val end = words.getOrNull(window.last)?.end ?: 0
            val units = unitsOf(asked, context.substring(begin, end))
            val nothing = Pair(units[0].start + units[0].end, units[0].startShare * units[0].endShare)
            none = minOf(none, nothing, compareBy<Pair<Double, Double>> { it.first }.thenBy { it.second })
            for (start in 1 until units.size) {
                for (stop in start until minOf(start + settings.longestAnswer, units.size)) {
                    val score = units[start].start + units[stop].end
                    if (score <= best) continue
                    best = score
                    val a = words[window.first + start - 1].start
                    val b = words[window.first + stop - 1].end
                    found = Answer(context.substring(a, b), a, b, units[start].startShare * units[stop].endShare)
                }
            }
        }
        val isNone = best == Double.NEGATIVE_INFINITY || settings.mayBeNone && none.first > best
        if (isNone) Answer("", 0, 0, none.second) else found
    }

    /** A golden text is a question, a line break and a window of a context. */
    override fun encodeGolden(text: String) = encoder.encodePair(text.substringBefore('\n'), text.substringAfter('\n', ""))

    override fun answerGolden(text: String) = answer(text.substringBefore('\n'), text.substringAfter('\n', ""))

    /** Of [CLS], then of each word of the window that was not cut off. */
    private fun unitsOf(question: String, window: String): List<Logits> {
        val encoding = encoder.encodePair(question, window)
        val logits = logits(encoding)
        val units = arrayListOf(0..0)
        // A word without tokens borrows those before it.
        for (tokens in tokensOf(encoding, wordsOf(window), sequence = 1).dropLastWhile { it == null }) {
            units.add(tokens ?: units.last())
        }
        val starts = FloatArray(units.size) { logits.row(units[it].first)[0] }
        val ends = FloatArray(units.size) { logits.row(units[it].last)[1] }
        val startShares = softmax(starts)
        val endShares = softmax(ends)
        return units.indices.map { Logits(starts[it].toDouble(), ends[it].toDouble(), startShares[it], endShares[it]) }
    }

    private fun withoutGaps(question: String): String {
        // The separators U+001C to U+001F are blanks in Python, where the model was trained.
        fun isGap(c: Char) = c in '\u001C'..'\u001F' || Unicode.has(c.code, UnicodeTables.SPACE)
        return question.map { if (isGap(it)) ' ' else it }.joinToString("").split(' ').filter { it.isNotEmpty() }
            .joinToString(" ")
    }

    /** The text cut to so many tokens. */
    private fun cut(text: String, limit: Int): String {
        val whole = encoder.encodeBare(text)
        return if (whole.ids.size <= limit) text else text.substring(0, whole.ends[limit - 1])
    }

    /**
     * First and last word of each window: as many words as `room` tokens hold, but one at least. The next begins at
     * most `maxLength / overlap` tokens before its end, and at most half of it.
     */
    private fun windowsOf(context: String, words: List<Word>, room: Int): List<IntRange> {
        val begins = ArrayList<Int>()  // of each word, in tokens; a word without tokens takes no room
        val ends = ArrayList<Int>()
        for (tokens in tokensOf(encoder.encodeBare(context), words)) {
            val before = ends.lastOrNull() ?: 0
            begins.add(tokens?.first ?: before)
            ends.add(if (tokens == null) before else tokens.last + 1)
        }
        val shared = minOf(settings.maxLength / settings.overlap, maxOf(room / 2, 0))
        val found = ArrayList<IntRange>()
        var first = 0
        while (true) {
            val fitting = if (words.isEmpty()) 0 else ends.countWhile { it <= begins[first] + room }
            val stop = maxOf(fitting, first + 1)
            found.add(first until stop)
            if (stop >= words.size) return found
            first = minOf(maxOf(begins.countWhile { it < ends[stop - 1] - shared }, first + 1), stop)
        }
    }

    private inline fun List<Int>.countWhile(wanted: (Int) -> Boolean): Int =
        indexOfFirst { !wanted(it) }.let { if (it < 0) size else it }

    companion object {
        const val TASK = "question-answering"

        /** Open a bundle's folder; throws BundleError. On Android: `load(context)`. */
        @JvmStatic
        @JvmOverloads
        fun load(folder: File, threads: Int = 1) = load(FolderFiles(folder), threads)

        @JvmStatic
        @JvmOverloads
        fun load(files: BundleFiles, threads: Int = 1) = EdgeAnswerer(files, threads)
    }
}
