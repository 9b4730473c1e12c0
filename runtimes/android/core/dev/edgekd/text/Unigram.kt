package dev.edgekd.text

/** Every match of the pattern becomes `content`. A pattern is a text, or at least `repeated` times its character. */
internal class Replace(private val pattern: IntArray, private val repeated: Int, private val content: IntArray) :
    Normalizer {
    override fun invoke(text: AlignedText) = text.substitute(content) { match(text.text, it) }

    /** The length of the match at `place`; 0: none. */
    private fun match(text: IntArray, place: Int): Int {
        if (repeated == 0) {
            val fits = place + pattern.size <= text.size && pattern.indices.all { pattern[it] == text[place + it] }
            return if (fits) pattern.size else 0
        }
        var end = place
        while (end < text.size && text[end] == pattern[0]) end++
        return if (end - place >= repeated) end - place else 0
    }
}

/** Blanks become a visible character, at which words begin. */
internal class Metaspace(private val replacement: Int, private val prepend: Prepend, private val split: Boolean) :
    PreTokenizer {
    enum class Prepend { ALWAYS, FIRST, NEVER }

    override fun invoke(text: AlignedText): List<AlignedText> {
        var whole = text.map { if (it == ' '.code) replacement else it }
        val wanted = prepend == Prepend.ALWAYS || prepend == Prepend.FIRST && whole.startOf(0) == 0
        if (wanted && whole.text[0] != replacement) whole = whole.prepend(intArrayOf(replacement))
        val parts = ArrayList<AlignedText>()
        var start = 0
        for (i in 1 until whole.size) {
            if (!split || whole.text[i] != replacement) continue
            parts.add(whole.slice(start, i))
            start = i
        }
        parts.add(whole.slice(start, whole.size))
        return parts
    }
}

/** SentencePiece's model: of all ways to cut a word, the most probable. */
internal class Unigram(entries: List<Pair<String, Double>>, private val unknown: Int?, private val byteFallback: Boolean) :
    Model {
    private class Scored(val id: Int, val score: Double)

    /** The best ways to each place of a word: the last token starts at `start`. */
    private class Paths(size: Int) {
        val start = IntArray(size)
        val score = DoubleArray(size)
        val reached = BooleanArray(size)
        val unknown = BooleanArray(size)
    }

    private val vocabulary = HashMap<String, Scored>(entries.size * 2)
    private var longest = 0
    private val unknownScore: Double

    init {
        var least = Double.POSITIVE_INFINITY
        entries.forEachIndexed { id, (text, score) ->
            vocabulary[text] = Scored(id, score)
            longest = maxOf(longest, text.codePointCount(0, text.length))
            least = minOf(least, score)
        }
        unknownScore = least - UNKNOWN_PENALTY
    }

    override fun idOf(token: String) = vocabulary[token]?.id

    override fun tokenize(word: Word, tokens: MutableList<Token>) {
        for ((start, end) in piecesOf(word)) {
            val piece = word.part(start, end)
            val id = idOf(piece)
            val bytes = if (id == null && byteFallback) byteTokens(piece, ::idOf) else null
            when {
                id != null -> tokens.add(Token(id, piece, start, end))
                bytes != null -> bytes.mapTo(tokens) { (byte, name) -> Token(byte, name, start, end) }
                unknown != null -> tokens.add(Token(unknown, piece, start, end))
                else -> throw TokenizerError("the model has no token for: $piece")
            }
        }
    }

    private fun bestPaths(word: Word): Paths {
        val best = Paths(word.size + 1)
        fun offer(start: Int, end: Int, score: Double, unknown: Boolean) {
            val sum = score + best.score[start]
            if (best.reached[end] && sum <= best.score[end]) return
            best.start[end] = start
            best.score[end] = sum
            best.reached[end] = true
            best.unknown[end] = unknown
        }
        for (start in 0 until word.size) {
            var single = false  // whether a token is this one character
            for (end in start + 1..minOf(word.size, start + longest)) {
                val found = vocabulary[word.part(start, end)] ?: continue
                offer(start, end, found.score, unknown == found.id)
                single = single || end == start + 1
            }
            if (!single) offer(start, start + 1, unknownScore, true)
        }
        return best
    }

    /** Unknown characters that follow each other are one piece. */
    private fun piecesOf(word: Word): List<Pair<Int, Int>> {
        val best = bestPaths(word)
        val pieces = ArrayList<Pair<Int, Int>>()  // from the end
        var fusing = false
        var end = word.size
        while (end > 0) {
            val start = best.start[end]
            if (fusing && best.unknown[end]) pieces[pieces.size - 1] = Pair(start, pieces.last().second)
            else pieces.add(Pair(start, end))
            fusing = best.unknown[end]
            end = start
        }
        return pieces.asReversed()
    }

    private companion object {
        const val UNKNOWN_PENALTY = 10.0
    }
}
