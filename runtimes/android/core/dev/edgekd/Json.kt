package dev.edgekd

/** The text is no JSON, or not of the form that was expected; the message says where. */
class JsonError(message: String) : Exception(message)

/** A value of a JSON document, and its place in it for messages. Only what a bundle's files need. */
class Json private constructor(private val value: Any?, private val place: String) {
    val isList get() = value is List<*>

    operator fun get(name: String): Json = given(name) ?: throw JsonError("$place has no '$name'")

    operator fun get(index: Int): Json = list().getOrNull(index) ?: throw JsonError("$place has no entry $index")

    /** A field that may be missing or null. */
    fun given(name: String): Json? {
        val found = (value as? Map<*, *> ?: wrong("an object"))[name]
        return if (found == null) null else Json(found, "$place.$name")
    }

    fun flag(name: String, otherwise: Boolean): Boolean = given(name)?.truth() ?: otherwise

    fun fields(): Map<String, Json> =
        (value as? Map<*, *> ?: wrong("an object")).entries.associate { (name, one) ->
            Pair(name as String, Json(one, "$place.$name"))
        }

    fun list(): List<Json> {
        val inside = "$place[]"
        return (value as? List<*> ?: wrong("a list")).map { Json(it, inside) }
    }

    fun text(): String = value as? String ?: wrong("a text")

    fun truth(): Boolean = value as? Boolean ?: wrong("true or false")

    fun number(): Double = (value as? Number ?: wrong("a number")).toDouble()

    fun whole(): Int {
        val number = value as? Long ?: wrong("a whole number")
        return if (number in Int.MIN_VALUE..Int.MAX_VALUE) number.toInt() else wrong("a whole number of 32 bits")
    }

    /** Numbers in a list, or in lists of lists one after the other. */
    fun numbers(): FloatArray {
        val found = ArrayList<Float>()
        fun add(one: Any?) {
            if (one is List<*>) one.forEach(::add) else found.add(Json(one, "$place[]").number().toFloat())
        }
        add(value)
        return found.toFloatArray()
    }

    fun wholes(): IntArray = list().map { it.whole() }.toIntArray()

    override fun toString() = value.toString()

    private fun wrong(wanted: String): Nothing = throw JsonError("$place is not $wanted")

    companion object {
        /** Throws JsonError. */
        fun parse(text: String): Json = Json(Reader(text).document(), "the document")
    }

    private class Reader(private val text: String) {
        private var place = 0
        private var depth = 0

        fun document(): Any? {
            val value = value()
            skipBlanks()
            if (place < text.length) fail("the end was expected")
            return value
        }

        private fun fail(what: String): Nothing = throw JsonError("$what at character $place")

        private fun skipBlanks() {
            while (place < text.length && text[place] in " \t\r\n") place++
        }

        private fun next(): Char {
            if (place == text.length) fail("the text ends")
            return text[place]
        }

        private fun take(c: Char) {
            if (next() != c) fail("'$c' was expected")
            place++
        }

        private fun value(): Any? {
            skipBlanks()
            return when (next()) {
                '{' -> inside(::fields)
                '[' -> inside(::entries)
                '"' -> string()
                't' -> word("true", true)
                'f' -> word("false", false)
                'n' -> word("null", null)
                else -> number()
            }
        }

        private fun <T> inside(read: () -> T): T {
            if (++depth > 200) fail("too deep")
            return read().also { depth-- }
        }

        private fun fields(): Map<String, Any?> {
            val found = LinkedHashMap<String, Any?>()
            separated('{', '}') {
                skipBlanks()
                val name = string()
                skipBlanks()
                take(':')
                found[name] = value()
            }
            return found
        }

        private fun entries(): List<Any?> {
            val found = ArrayList<Any?>()
            separated('[', ']') { found.add(value()) }
            return found
        }

        private inline fun separated(open: Char, close: Char, read: () -> Unit) {
            take(open)
            skipBlanks()
            if (next() != close) {
                while (true) {
                    read()
                    skipBlanks()
                    if (next() == close) break
                    take(',')
                }
            }
            place++
        }

        private fun <T> word(word: String, value: T): T {
            if (!text.startsWith(word, place)) fail("no value")
            place += word.length
            return value
        }

        private fun number(): Any {
            val start = place
            while (place < text.length && text[place] in "+-0123456789.eE") place++
            val written = text.substring(start, place)
            return written.toLongOrNull() ?: written.toDoubleOrNull() ?: fail("no value")
        }

        private fun string(): String {
            take('"')
            val start = place
            while (next() != '"' && text[place] != '\\') place++
            if (text[place] == '"') return text.substring(start, place++)
            val found = StringBuilder(text.substring(start, place))
            while (next() != '"') {
                if (text[place] == '\\') escape(found) else found.append(text[place++])
            }
            place++
            return found.toString()
        }

        private fun escape(into: StringBuilder) {
            place++
            val c = next()
            place++
            when (c) {
                '"', '\\', '/' -> into.append(c)
                'b' -> into.append('\b')
                'f' -> into.append('\u000C')
                'n' -> into.append('\n')
                'r' -> into.append('\r')
                't' -> into.append('\t')
                'u' -> {
                    val digits = if (place + 4 <= text.length) text.substring(place, place + 4) else fail("the text ends")
                    into.append(digits.toIntOrNull(16)?.toChar() ?: fail("no character"))
                    place += 4
                }
                else -> fail("no escape")
            }
        }
    }
}
