package dev.edgekd.text

import java.util.PriorityQueue

/** Splits as GPT-2's regular expression does, and writes each byte of UTF-8 as one visible character. */
internal class ByteLevel(private val addPrefixSpace: Boolean, private val useRegex: Boolean) : PreTokenizer {
    override fun invoke(text: AlignedText): List<AlignedText> {
        val whole = if (addPrefixSpace && text.text[0] != ' '.code) text.prepend(intArrayOf(' '.code)) else text
        val parts = ArrayList<AlignedText>()
        var start = 0
        while (start < whole.size) {
            val end = if (useRegex) match(whole.text, start) else whole.size
            parts.add(whole.slice(start, end).expand(::visibleBytes))
            start = end
        }
        return parts
    }

    private fun visibleBytes(c: Int): IntArray {
        val bytes = String(Character.toChars(c)).toByteArray()
        return IntArray(bytes.size) { ALPHABET[bytes[it].toInt() and 0xFF] }
    }

    /**
     * The end of the match that starts at `start`, of the expression
     * 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
     */
    private fun match(text: IntArray, start: Int): Int {
        val length = contraction(text, start)
        if (length > 0) return start + length
        val word = start + if (text[start] == ' '.code) 1 else 0
        for (kind in KINDS) {
            val end = run(text, word, kind)
            if (end > word) return end
        }
        val end = run(text, start) { Unicode.has(it, UnicodeTables.GAP) }
        val lastBelongsToNext = end < text.size && end - start > 1
        return if (lastBelongsToNext) end - 1 else end
    }

    private fun contraction(text: IntArray, start: Int): Int {
        if (text[start] != '\''.code) return 0
        return CONTRACTIONS.firstOrNull { one ->
            start + one.length <= text.size && one.indices.all { one[it].code == text[start + it] }
        }?.length ?: 0
    }

    /** The end of the characters of a kind from `start` on. */
    private inline fun run(text: IntArray, start: Int, kind: (Int) -> Boolean): Int {
        var end = start
        while (end < text.size && kind(text[end])) end++
        return end
    }

    private companion object {
        val CONTRACTIONS = listOf("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
        val KINDS = listOf<(Int) -> Boolean>(
            { Unicode.has(it, UnicodeTables.LETTER) },
            { Unicode.has(it, UnicodeTables.NUMBER) },
            { !Unicode.has(it, UnicodeTables.LETTER or UnicodeTables.NUMBER or UnicodeTables.GAP) },
        )

        // GPT-2's alphabet: a printable byte stands for itself, the others for the characters from U+0100 on.
        val ALPHABET = IntArray(256).also { alphabet ->
            var next = 0x100
            for (byte in 0..255) {
                val printable = byte in 0x21..0x7E || byte in 0xA1..0xAC || byte >= 0xAE
                alphabet[byte] = if (printable) byte else next++
            }
        }
    }
}

internal class Bpe(
    private val vocabulary: Map<String, Int>,
    merges: List<Pair<String, String>>,
    private val options: Options,
) : Model {
    class Options(
        val unknown: String?,
        val fuseUnknown: Boolean,
        val byteFallback: Boolean,  // an unknown character becomes tokens <0x..>
        val ignoreMerges: Boolean,  // a word of the vocabulary is that token, whatever the merges say
    )

    private class Merge(val rank: Int, val id: Int)

    private class Symbol(var id: Int, val start: Int, var end: Int, var before: Int, var after: Int) {
        var gone = false
    }

    private class Candidate(val rank: Int, val place: Int, val id: Int) : Comparable<Candidate> {
        override fun compareTo(other: Candidate) = ORDER.compare(this, other)
    }

    private val textOf = HashMap<Int, String>(vocabulary.size * 2)
    private val merges = HashMap<Long, Merge>(merges.size * 2)
    private val unknownId: Int?

    init {
        for ((text, id) in vocabulary) textOf[id] = text
        merges.forEachIndexed { rank, (left, right) ->
            val one = vocabulary[left]
            val other = vocabulary[right]
            val both = vocabulary[left + right]
            if (one == null || other == null || both == null) {
                throw TokenizerError("a merge is not of the vocabulary: $left $right")
            }
            this.merges[keyOf(one, other)] = Merge(rank, both)
        }
        unknownId = options.unknown?.let {
            vocabulary[it] ?: throw TokenizerError("unk_token is not in the vocabulary: $it")
        }
    }

    override fun idOf(token: String) = vocabulary[token]

    override fun tokenize(word: Word, tokens: MutableList<Token>) {
        val whole = if (options.ignoreMerges) vocabulary[word.text] else null
        if (whole != null) {
            tokens.add(Token(whole, word.text, 0, word.size))
            return
        }
        val symbols = symbolsOf(word)
        merge(symbols)
        for (one in symbols) if (!one.gone) tokens.add(Token(one.id, textOf.getValue(one.id), one.start, one.end))
    }

    private fun symbolsOf(word: Word): List<Symbol> {
        val symbols = ArrayList<Symbol>(word.size)
        var afterUnknown = false
        fun add(id: Int, at: Int) {
            symbols.add(Symbol(id, at, at + 1, symbols.size - 1, symbols.size + 1))
        }
        for (i in 0 until word.size) {
            val character = word.part(i, i + 1)
            val id = vocabulary[character]
            val bytes = if (id == null && options.byteFallback) byteTokens(character, vocabulary::get) else null
            val unknown = if (id == null && bytes == null) unknownId else null
            if (id != null) add(id, i)
            bytes?.forEach { (byte, _) -> add(byte, i) }
            if (unknown != null) {
                if (afterUnknown && options.fuseUnknown) symbols.last().end = i + 1 else add(unknown, i)
            }
            afterUnknown = unknown != null
        }
        if (symbols.isNotEmpty()) symbols.last().after = -1
        return symbols
    }

    /** The merge of the lowest rank first, of one rank the leftmost. */
    private fun merge(symbols: List<Symbol>) {
        val candidates = PriorityQueue<Candidate>()
        fun propose(left: Int) {
            if (left < 0 || symbols[left].after < 0) return
            val merge = mergeOf(symbols[left], symbols[symbols[left].after]) ?: return
            candidates.add(Candidate(merge.rank, left, merge.id))
        }
        for (i in symbols.indices) propose(i)
        while (true) {
            val next = candidates.poll() ?: break
            val left = symbols[next.place]
            if (left.gone || left.after < 0) continue
            val right = symbols[left.after]
            if (mergeOf(left, right)?.id != next.id) continue  // one of the two was merged meanwhile
            left.id = next.id
            left.end = right.end
            left.after = right.after
            right.gone = true
            if (left.after >= 0) symbols[left.after].before = next.place
            propose(left.before)
            propose(next.place)
        }
    }

    private fun mergeOf(left: Symbol, right: Symbol) = merges[keyOf(left.id, right.id)]

    private fun keyOf(left: Int, right: Int) = left.toLong() shl 32 or right.toLong()

    private companion object {
        val ORDER = compareBy<Candidate>({ it.rank }, { it.place }, { it.id })
    }
}
