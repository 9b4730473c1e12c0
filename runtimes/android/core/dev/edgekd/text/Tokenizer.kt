package dev.edgekd.text

/** Offsets count in the text, or in the pair's own text, as Kotlin's strings do (UTF-16); specials have 0, 0. */
internal class Encoding(
    val ids: IntArray,
    val starts: IntArray,
    val ends: IntArray,
    val typeIds: IntArray,
    val sequences: IntArray,  // 0 or 1: the text that the token is of; -1: put there by the post-processor
)

/**
 * A tokenizer of the Hugging Face format tokenizer.json: the ids and offsets that the Python package gives. What the
 * file says on truncation and padding is left out: it is how the file was last used, not what the tokenizer is.
 */
internal class Tokenizer(
    private val addedRaw: AddedTokens,  // found in the text as written
    private val addedNormalized: AddedTokens,  // found after normalizing
    private val normalizers: List<Normalizer>,
    private val preTokenizers: List<PreTokenizer>,
    private val model: Model,
    private val postProcessor: PostProcessor,
) {
    /** How many special tokens a pair has. */
    val specialsOfPair = specialsOf(postProcessor.pair)

    /** `maxLength` counts the special tokens too; what is too much is cut off at the end. */
    fun encode(text: String, maxLength: Int = Int.MAX_VALUE) =
        finished(postProcessor.single, AlignedText.of(text), null, maxLength, Truncation.LONGEST_FIRST)

    fun encodePair(
        first: String,
        second: String,
        maxLength: Int = Int.MAX_VALUE,
        truncation: Truncation = Truncation.LONGEST_FIRST,
    ) = finished(postProcessor.pair, AlignedText.of(first), AlignedText.of(second), maxLength, truncation)

    /** In full and without special tokens. */
    fun encodeBare(text: String): Encoding {
        val bare = postProcessor.single.filter { it.text != null }
        return finished(bare, AlignedText.of(text), null, Int.MAX_VALUE, Truncation.LONGEST_FIRST)
    }

    private fun specialsOf(slots: List<Slot>) = slots.sumOf { it.ids.size }

    /** The pieces that are not added tokens are normalized. */
    private fun piecesOf(text: AlignedText): List<Piece> = addedRaw.split(text).flatMap { raw ->
        if (raw.token != null) listOf(raw)
        else addedNormalized.split(normalizers.fold(raw.text) { before, normalizer -> normalizer(before) })
    }

    private fun tokensOf(text: AlignedText): MutableList<Token> {
        val tokens = ArrayList<Token>()
        for (piece in piecesOf(text)) {
            if (piece.token != null) {
                val whole = piece.text
                val content = String(whole.text, 0, whole.size)
                tokens.add(Token(piece.token, content, whole.startOf(0), whole.endOf(whole.size - 1)))
                continue
            }
            for (word in wordsOf(piece.text)) {
                val before = tokens.size
                model.tokenize(Word(word.text), tokens)
                for (i in before until tokens.size) {
                    tokens[i] = tokens[i].at(word.startOf(tokens[i].start), word.endOf(tokens[i].end - 1))
                }
            }
        }
        return tokens
    }

    private fun wordsOf(text: AlignedText): List<AlignedText> =
        preTokenizers.fold(listOf(text).filled()) { words, preTokenizer -> words.flatMap(preTokenizer).filled() }

    private fun List<AlignedText>.filled() = filter { it.size > 0 }

    private fun finished(
        slots: List<Slot>,
        firstText: AlignedText,
        secondText: AlignedText?,
        maxLength: Int,
        truncation: Truncation,
    ): Encoding {
        val first = tokensOf(firstText)
        val second = secondText?.let(::tokensOf)
        val added = specialsOf(slots)
        if (maxLength < added) throw TokenizerError("max_length $maxLength does not hold the $added special tokens")
        truncate(first, second, maxLength - added, truncation)
        postProcessor.trimming?.let { trimming ->
            trimming.trim(first)
            second?.let(trimming::trim)
        }
        val ids = Ints()
        val starts = Ints()
        val ends = Ints()
        val types = Ints()
        val sequences = Ints()
        fun add(id: Int, start: Int, end: Int, type: Int, sequence: Int) {
            ids.add(id)
            starts.add(start)
            ends.add(end)
            types.add(type)
            sequences.add(sequence)
        }
        for (slot in slots) {
            val (text, tokens) = if (slot.text == 1) Pair(secondText, second) else Pair(firstText, first)
            if (slot.text != null && text != null && tokens != null) {
                val places = Places(text.text)
                for (token in tokens) add(token.id, places[token.start], places[token.end], slot.type, slot.text)
            }
            for (id in slot.ids) add(id, 0, 0, slot.type, -1)
        }
        return Encoding(ids.toArray(), starts.toArray(), ends.toArray(), types.toArray(), sequences.toArray())
    }
}
