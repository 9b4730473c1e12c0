package dev.edgekd.text

internal class AddedToken(
    val id: Int,
    val content: IntArray,
    val singleWord: Boolean,  // not inside a word
    val lstrip: Boolean,  // takes the blanks before it along
    val rstrip: Boolean,
)

/** A part of a text, and the token that it is where it is one. */
internal class Piece(val text: AlignedText, val token: Int?)

/** Tokens that are found in the text itself, before the model sees it: [MASK] in a sentence is one token. */
internal class AddedTokens(tokens: List<AddedToken>) {
    // The longest first; of two with one content the first is found.
    private val byFirst: Map<Int, List<AddedToken>> =
        tokens.filter { it.content.isNotEmpty() }.sortedByDescending { it.content.size }.groupBy { it.content[0] }

    /** The text in parts that are not empty, in order. */
    fun split(aligned: AlignedText): List<Piece> {
        val text = aligned.text
        val pieces = ArrayList<Piece>()
        var done = 0  // up to here the text is in pieces
        var place = 0
        while (place < text.size) {
            val token = at(text, place)
            if (token == null) {
                place++
                continue
            }
            var start = place
            var end = place + token.content.size
            place = end
            if (token.singleWord && isInsideWord(text, start, end)) continue
            while (token.lstrip && start > done && Unicode.has(text[start - 1], UnicodeTables.SPACE)) start--
            while (token.rstrip && end < text.size && Unicode.has(text[end], UnicodeTables.SPACE)) end++
            if (done < start) pieces.add(Piece(aligned.slice(done, start), null))
            pieces.add(Piece(aligned.slice(start, end), token.id))
            done = end
        }
        if (done < text.size) pieces.add(Piece(aligned.slice(done, text.size), null))
        return pieces
    }

    private fun at(text: IntArray, place: Int): AddedToken? =
        byFirst[text[place]]?.firstOrNull { token ->
            place + token.content.size <= text.size && token.content.indices.all { token.content[it] == text[place + it] }
        }

    private fun isInsideWord(text: IntArray, start: Int, end: Int): Boolean {
        val before = start > 0 && Unicode.has(text[start - 1], UnicodeTables.WORD)
        val after = end < text.size && Unicode.has(text[end], UnicodeTables.WORD)
        return before || after
    }
}
