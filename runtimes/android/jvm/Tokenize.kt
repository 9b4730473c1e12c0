@file:JvmName("TokenizeMain")

package dev.edgekd

import dev.edgekd.text.Tokenizer
import dev.edgekd.text.TokenizerError
import dev.edgekd.text.TokenizerFile
import dev.edgekd.text.Truncation
import java.io.File
import kotlin.system.exitProcess

/**
 * `tokenize TOKENIZER.JSON`: a line {"text", "pair"?, "max_length"?, "truncation"?, "bare"?} in, a line {"ids",
 * "offsets", "special_mask", "type_ids", "texts"} or {"error"} out, as the program of the C++ core, but that
 * offsets count in UTF-16.
 */
fun main(arguments: Array<String>) {
    val tokenizer = try {
        TokenizerFile.read(File(arguments.single()).readText())
    } catch (error: TokenizerError) {
        System.err.println("tokenize: ${error.message}")
        exitProcess(1)
    } catch (error: java.io.IOException) {
        System.err.println("tokenize: cannot be opened: ${error.message}")
        exitProcess(1)
    }
    val out = System.out.writer()
    for (line in System.`in`.bufferedReader().lineSequence()) {
        out.write(answer(tokenizer, line) + "\n")
        out.flush()
    }
}

private fun answer(tokenizer: Tokenizer, line: String): String = try {
    val asked = Json.parse(line)
    val text = asked["text"].text()
    val pair = asked.given("pair")?.text()
    val most = asked.given("max_length")?.whole() ?: Int.MAX_VALUE
    val truncation = Truncation.valueOf((asked.given("truncation")?.text() ?: "longest_first").uppercase())
    val found = when {
        asked.flag("bare", false) -> tokenizer.encodeBare(text)
        pair == null -> tokenizer.encode(text, most)
        else -> tokenizer.encodePair(text, pair, most, truncation)
    }
    val offsets = found.ids.indices.map { i -> "[${found.starts[i]}, ${found.ends[i]}]" }
    """{"ids": ${found.ids.toList()}, "offsets": $offsets, "special_mask": ${found.sequences.map { if (it < 0) 1 else 0 }}, """ +
        """"type_ids": ${found.typeIds.toList()}, "texts": ${found.sequences.toList()}}"""
} catch (error: TokenizerError) {
    failure(error)
} catch (error: JsonError) {
    failure(error)
}

private fun failure(error: Exception) = """{"error": "${error.message.orEmpty().replace(Regex("[^ -~]|[\"\\\\]"), "?")}"}"""
