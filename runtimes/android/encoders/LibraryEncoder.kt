package dev.edgekd

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer
import dev.edgekd.text.Encoding
import dev.edgekd.text.Places
import dev.edgekd.text.TokenizerError
import dev.edgekd.text.codePointsOf
import java.io.ByteArrayInputStream

/** DJL's tokenizer, the Rust library that the run itself used. */
internal fun openEncoder(files: BundleFiles, maxLength: Int): Encoder =
    LibraryEncoder(files.bytes("model/tokenizer.json"), maxLength)

private class LibraryEncoder(content: ByteArray, maxLength: Int) : Encoder {
    private val cutting = open(content, mapOf("truncation" to "LONGEST_FIRST", "maxLength" to "$maxLength"))
    private val whole = open(content, mapOf("truncation" to "DO_NOT_TRUNCATE"))

    override val specialsOfPair = whole.encode("", "", true, false).ids.size

    override fun encode(text: String) = read(cutting.encode(well(text), true, false), listOf(text), 0)

    override fun encodePair(first: String, second: String): Encoding {
        // DJL does not say which text a token is of: the second begins after the specials behind the first.
        val begin = if (whole.encode(well(first), false, false).ids.isEmpty()) 1 else 0
        return read(cutting.encode(well(first), well(second), true, false), listOf(first, second), begin)
    }

    override fun encodeBare(text: String) = read(whole.encode(well(text), false, false), listOf(text), 0)

    private fun open(content: ByteArray, options: Map<String, String>): HuggingFaceTokenizer = try {
        // modelMaxLength: DJL would cut to 512 tokens otherwise.
        HuggingFaceTokenizer.newInstance(
            ByteArrayInputStream(content),
            options + mapOf("padding" to "DO_NOT_PAD", "modelMaxLength" to "${Int.MAX_VALUE}"),
        )
    } catch (error: RuntimeException) {
        throw TokenizerError("DJL cannot read tokenizer.json: ${error.message}")
    }

    /** Half of a surrogate pair is no character, and nothing that Rust takes. */
    private fun well(text: String) = codePointsOf(text).let { String(it, 0, it.size) }

    private fun read(found: ai.djl.huggingface.tokenizers.Encoding, texts: List<String>, begin: Int): Encoding {
        val places = texts.map { Places(codePointsOf(it)) }
        val ids = found.ids
        val spans = found.charTokenSpans
        val sequences = IntArray(ids.size)
        var text = begin
        for (i in ids.indices) {
            val special = spans[i] == null
            if (special && i > 0 && spans[i - 1] != null && texts.size > 1) text = 1
            sequences[i] = if (special) -1 else text
        }
        fun place(i: Int, character: Int) = places[sequences[i]][character]
        return Encoding(
            IntArray(ids.size) { ids[it].toInt() },
            IntArray(ids.size) { i -> spans[i]?.let { place(i, it.start) } ?: 0 },
            IntArray(ids.size) { i -> spans[i]?.let { place(i, it.end) } ?: 0 },
            found.typeIds.map { it.toInt() }.toIntArray(),
            sequences,
        )
    }

    override fun close() {
        cutting.close()
        whole.close()
    }
}
