package dev.edgekd.text

/** The file or the text cannot be used; the message says why. */
class TokenizerError(message: String) : Exception(message)

/** `start` and `end`: in the word; later in the original text. */
internal class Token(val id: Int, val text: String, val start: Int, val end: Int) {
    fun at(start: Int, end: Int) = Token(id, text, start, end)
}

/** What a tokenizer's model is: words in, tokens out. */
internal interface Model {
    /** Appends the tokens of a word (not empty). */
    fun tokenize(word: Word, tokens: MutableList<Token>)

    fun idOf(token: String): Int?
}

/** The tokens `<0x..>` of a character's bytes; null where the vocabulary has not all of them. */
internal fun byteTokens(text: String, idOf: (String) -> Int?): List<Pair<Int, String>>? {
    val digits = "0123456789ABCDEF"
    return text.toByteArray().map { byte ->
        val value = byte.toInt() and 0xFF
        val name = "<0x${digits[value shr 4]}${digits[value and 15]}>"
        Pair(idOf(name) ?: return null, name)
    }
}
