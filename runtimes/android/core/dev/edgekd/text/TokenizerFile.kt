package dev.edgekd.text

import dev.edgekd.Json
import dev.edgekd.JsonError

/** tokenizer.json to a tokenizer: the one place that knows the format. What is not written is refused by its name. */
internal object TokenizerFile {
    /** Throws TokenizerError. */
    fun read(content: String): Tokenizer = try {
        read(Json.parse(content))
    } catch (error: JsonError) {
        throw TokenizerError("no tokenizer.json: ${error.message}")
    }

    private fun read(file: Json): Tokenizer {
        val model = modelOf(file["model"])
        val normalizers = ArrayList<Normalizer>()
        val preTokenizers = ArrayList<PreTokenizer>()
        val postProcessor = PostProcessor()
        file.given("normalizer")?.let { addNormalizers(it, normalizers) }
        file.given("pre_tokenizer")?.let { addPreTokenizers(it, preTokenizers) }
        file.given("post_processor")?.let { setPostProcessor(it, postProcessor) }
        // Where two are the same text, the special one is found.
        val added = file.given("added_tokens")?.list().orEmpty().sortedByDescending { it.flag("special", false) }
        val (normalized, raw) = added.partition { it.flag("normalized", !it.flag("special", false)) }
        return Tokenizer(
            AddedTokens(raw.map { addedToken(it, model, emptyList()) }),
            AddedTokens(normalized.map { addedToken(it, model, normalizers) }),
            normalizers,
            preTokenizers,
            model,
            postProcessor,
        )
    }

    private fun typeOf(part: Json) = part.given("type")?.text() ?: "(no type)"

    private fun refuse(kind: String, what: String): Nothing =
        throw TokenizerError("this tokenizer cannot be run here: $kind $what is not written")

    private fun addedToken(part: Json, model: Model, normalizers: List<Normalizer>): AddedToken {
        val content = part["content"].text()
        return AddedToken(
            model.idOf(content) ?: part["id"].whole(),
            normalizers.fold(AlignedText.of(content)) { text, normalizer -> normalizer(text) }.text,
            part.flag("single_word", false),
            part.flag("lstrip", false),
            part.flag("rstrip", false),
        )
    }

    private fun addNormalizers(part: Json, normalizers: MutableList<Normalizer>) {
        when (val type = typeOf(part)) {
            "Sequence" -> part["normalizers"].list().forEach { addNormalizers(it, normalizers) }
            "BertNormalizer" -> {
                val lowercase = part.flag("lowercase", true)
                val strip = part.flag("strip_accents", lowercase)
                val clean = part.flag("clean_text", true)
                normalizers.add(BertNormalizer(clean, part.flag("handle_chinese_chars", true), strip, lowercase))
            }
            "Lowercase" -> normalizers.add(BertNormalizer(false, false, false, true))
            "Replace" -> normalizers.add(replaceOf(part))
            "Prepend" -> {
                val before = codePointsOf(part["prepend"].text())
                normalizers.add { it.prepend(before) }
            }
            else -> refuse("normalizer", type)
        }
    }

    private fun replaceOf(part: Json): Replace {
        val content = codePointsOf(part["content"].text())
        val text = part["pattern"].given("String")?.text().orEmpty()
        if (text.isNotEmpty()) return Replace(codePointsOf(text), 0, content)
        // The one expression that tokenizers are made with.
        if (part["pattern"].given("Regex")?.text() == " {2,}") return Replace(intArrayOf(' '.code), 2, content)
        refuse("normalizer", "Replace of ${part["pattern"]}")
    }

    private fun addPreTokenizers(part: Json, preTokenizers: MutableList<PreTokenizer>) {
        when (val type = typeOf(part)) {
            "Sequence" -> part["pretokenizers"].list().forEach { addPreTokenizers(it, preTokenizers) }
            "BertPreTokenizer" -> preTokenizers.add(::splitBert)
            "ByteLevel" ->
                preTokenizers.add(ByteLevel(part.flag("add_prefix_space", true), part.flag("use_regex", true)))
            "Metaspace" -> preTokenizers.add(metaspaceOf(part))
            else -> refuse("pre-tokenizer", type)
        }
    }

    private fun metaspaceOf(part: Json): Metaspace {
        val replacement = codePointsOf(part["replacement"].text()).singleOrNull()
            ?: throw TokenizerError("Metaspace's replacement is not one character")
        // Older files say add_prefix_space instead.
        val scheme = part.given("prepend_scheme")?.text()
            ?: if (part.flag("add_prefix_space", true)) "always" else "never"
        val prepend = Metaspace.Prepend.values().find { it.name.lowercase() == scheme } ?: refuse("prepend_scheme", scheme)
        return Metaspace(replacement, prepend, part.flag("split", true))
    }

    /** Old files give a model no type: each kind is told by a field that it alone has. */
    private fun modelOf(part: Json): Model {
        val guess = when {
            part.given("merges") != null -> "BPE"
            part.given("max_input_chars_per_word") != null -> "WordPiece"
            else -> "(no type)"
        }
        return when (val type = part.given("type")?.text() ?: guess) {
            "WordPiece" -> WordPiece(
                vocabularyOf(part),
                part["unk_token"].text(),
                part["continuing_subword_prefix"].text(),
                part["max_input_chars_per_word"].whole(),
            )
            "BPE" -> bpeOf(part)
            "Unigram" -> Unigram(
                part["vocab"].list().map { Pair(it[0].text(), it[1].number()) },
                part.given("unk_id")?.whole(),
                part.flag("byte_fallback", false),
            )
            else -> refuse("model", type)
        }
    }

    private fun vocabularyOf(part: Json): Map<String, Int> {
        val tokens = part["vocab"].fields()
        val vocabulary = HashMap<String, Int>(tokens.size * 2)
        for ((token, id) in tokens) vocabulary[token] = id.whole()
        return vocabulary
    }

    private fun bpeOf(part: Json): Bpe {
        for (name in listOf("continuing_subword_prefix", "end_of_word_suffix")) {
            if (!part.given(name)?.text().isNullOrEmpty()) refuse("model BPE with", name)
        }
        if ((part.given("dropout")?.number() ?: 0.0) != 0.0) refuse("model BPE with", "dropout")
        val options = Bpe.Options(
            part.given("unk_token")?.text()?.ifEmpty { null },
            part.flag("fuse_unk", false),
            part.flag("byte_fallback", false),
            part.flag("ignore_merges", false),
        )
        return Bpe(vocabularyOf(part), part["merges"].list().map(::mergeOf), options)
    }

    /** A merge is "a b" in old files and ["a", "b"] in new ones. */
    private fun mergeOf(merge: Json): Pair<String, String> {
        if (merge.isList) return Pair(merge[0].text(), merge[1].text())
        val both = merge.text()
        val gap = both.indexOf(' ')
        if (gap < 0) throw TokenizerError("a merge is not of two tokens: $both")
        return Pair(both.substring(0, gap), both.substring(gap + 1))
    }

    private fun setPostProcessor(part: Json, processor: PostProcessor) {
        when (val type = typeOf(part)) {
            "Sequence" -> part["processors"].list().forEach { setPostProcessor(it, processor) }
            "TemplateProcessing" -> {
                processor.single = templateOf(part["single"], part["special_tokens"])
                processor.pair = templateOf(part["pair"], part["special_tokens"])
            }
            "BertProcessing" -> setAround(processor, part, roberta = false)
            "RobertaProcessing" -> {
                setAround(processor, part, roberta = true)
                setTrimming(processor, part)
            }
            "ByteLevel" -> setTrimming(processor, part)
            else -> refuse("post-processor", type)
        }
    }

    private fun templateOf(slots: Json, specialTokens: Json) = slots.list().map { slot ->
        val sequence = slot.given("Sequence")
        if (sequence != null) {
            Slot(if (sequence["id"].text() == "A") 0 else 1, IntArray(0), sequence["type_id"].whole())
        } else {
            val token = slot["SpecialToken"]
            val ids = specialTokens[token["id"].text()]["ids"].list().map { it.whole() }
            Slot(null, ids.toIntArray(), token["type_id"].whole())
        }
    }

    private fun setAround(processor: PostProcessor, part: Json, roberta: Boolean) {
        val second = if (roberta) 0 else 1
        fun special(name: String, type: Int) = Slot(null, intArrayOf(part[name][1].whole()), type)
        processor.single = listOf(special("cls", 0), Slot(0, IntArray(0), 0), special("sep", 0))
        val between = if (roberta) listOf(special("sep", 0)) else emptyList()
        processor.pair = processor.single + between + Slot(1, IntArray(0), second) + special("sep", second)
    }

    private fun setTrimming(processor: PostProcessor, part: Json) {
        if (part.flag("trim_offsets", true)) processor.trimming = Trimming(part.flag("add_prefix_space", true))
    }
}
