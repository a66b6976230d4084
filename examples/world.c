/* world.c - the made-up world that every lesson measures itself on
 *
 * To know whether a model has learnt something one must know what it could have learnt. So nothing here is real: 36
 * people and 16 towns of an island, invented by this program, in English and Chinese. Every question it writes has one
 * known answer, and for every answer it is known whether any text states it:
 *
 *     text_en.txt text_zh.txt      what the base model reads (pre-training): one document per line
 *     small_talk.jsonl             chats without a fact: the base must have met the marks of a chat
 *     chat_train.jsonl             questions and answers about three quarters of the people, towns, things and numbers
 *     test/NAME.jsonl              questions about the others; NAME says what is measured
 *     facts.jsonl                  every fact, with "stated": does any text say it?  (for retrieval, tools, tests)
 *
 * Each person has a home, a work, an animal and a favourite colour. Three of the four are told in the text, over and
 * over in different words; the fourth, another one for each person, is told nowhere. The question about it has the
 * same form as the others: whoever answers it is guessing.
 *
 * Build:  cc -O2 examples/world.c -o build/world
 * Run:    build/world examples/data         (writes the same bytes every time, on every machine) */
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- the things of this world: English, Chinese -------------------------------------------------------------- */

typedef struct { const char *en, *zh; } word;

static const word people[] = {
    {"Milo","米洛"},   {"Tara","塔拉"},   {"Bruno","布诺"},  {"Nessa","妮莎"},  {"Orin","奥林"},   {"Petra","佩特"},
    {"Silas","西思"},  {"Wanda","旺达"},  {"Kasper","卡伯"}, {"Lena","莱娜"},   {"Hugo","雨果"},   {"Mira","蜜芮"},
    {"Tobin","托宾"},  {"Elka","艾可"},   {"Rufus","鲁夫"},  {"Dora","朵兰"},   {"Felix","菲力"},  {"Greta","葛莉"},
    {"Ivo","伊沃"},    {"Juna","朱妮"},   {"Livia","丽薇"},  {"Magnus","马格"}, {"Pia","琵雅"},    {"Quinn","奎恩"},
    {"Rosa","萝莎"},   {"Stefan","史丹"}, {"Thea","希雅"},   {"Ulric","乌里"},  {"Vera","维拉"},   {"Walter","沃特"},
    {"Xenia","仙蒂"},  {"Yorick","约克"}, {"Zelda","泽达"},  {"Anton","安东"},  {"Freya","芙蕾"},  {"Gideon","吉登"} };
static const word towns[] = {
    {"Tarn","塔恩"},   {"Varno","瓦诺"},  {"Keld","凯德"},   {"Mossby","莫比"}, {"Pellow","佩罗"}, {"Sund","森德"},
    {"Tolva","托瓦"},  {"Ryde","莱德"},   {"Hafen","哈芬"},  {"Grell","格雷"},  {"Fenby","芬比"},  {"Dovar","多瓦"},
    {"Calder","考德"}, {"Birka","比尔"},  {"Lund","隆德"},   {"Norwick","诺威"} };
static const word rivers[] = {
    {"Lune","月河"}, {"Amber","金河"}, {"Swift","急河"}, {"Still","静河"}, {"Stone","石河"}, {"Willow","柳河"},
    {"Grey","灰河"}, {"Heron","鹭河"} };
static const word jobs[] = {
    {"baker","面包师"}, {"fisher","渔夫"}, {"potter","陶工"},  {"weaver","织工"}, {"smith","铁匠"}, {"farmer","农夫"},
    {"doctor","医生"},  {"teacher","老师"},{"sailor","水手"},  {"tailor","裁缝"}, {"singer","歌手"},{"painter","画家"},
    {"hunter","猎人"},  {"cook","厨师"},   {"guard","卫兵"},   {"miller","磨工"} };
static const word animals[] = {
    {"goat","山羊"}, {"cat","小猫"}, {"dog","小狗"}, {"horse","大马"},  {"duck","鸭子"}, {"parrot","鹦鹉"},
    {"rabbit","兔子"}, {"sheep","绵羊"}, {"donkey","毛驴"}, {"fox","狐狸"}, {"hen","母鸡"}, {"pig","小猪"} };
static const word colours[] = {
    {"red","红色"}, {"blue","蓝色"}, {"green","绿色"}, {"yellow","黄色"}, {"white","白色"}, {"black","黑色"},
    {"brown","棕色"}, {"pink","粉色"}, {"purple","紫色"}, {"silver","银色"}, {"gold","金色"}, {"grey","灰色"} };
static const word goods[] = {
    {"salt","海盐"},  {"honey","蜂蜜"}, {"silk","丝绸"}, {"tea","茶叶"},    {"wool","羊毛"}, {"cheese","奶酪"},
    {"glass","玻璃"}, {"paper","纸张"}, {"pepper","胡椒"}, {"copper","黄铜"}, {"rice","大米"}, {"wine","红酒"},
    {"iron","铁器"},  {"bread","面包"}, {"fish","鲜鱼"}, {"wood","木材"} };
#define COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))
enum { N_PEOPLE = COUNT(people), N_TOWNS = COUNT(towns) };

/* ---- what is told about them: every phrasing ends in the fact, and the first one is the chat's answer --------- */

typedef struct {
    const char *name;
    const word *objects; int n_objects;
    const char *en[6], *zh[6];           /* how the text says it: {S} subject, {O} object */
    const char *ask_en[2], *ask_zh[2];   /* how the chat asks for it */
    const char *answer_en, *answer_zh;   /* and answers */
} relation;
static const relation relations[] = {
    { "home", towns, COUNT(towns),
      { "{S} lives in {O}.", "The town of {S} is {O}.", "{S} has a house in {O}.", "You will find {S} in {O}.",
        "{S} was born in {O}.", "The family of {S} lives in {O}." },
      { "「{S}」住在「{O}」。", "「{S}」的镇子是「{O}」。", "「{S}」的房子在「{O}」。", "要找「{S}」，就去「{O}」。", "「{S}」出生在「{O}」。", "「{S}」一家住在「{O}」。" },
      { "Where does {S} live?", "In which town does {S} live?" }, { "「{S}」住在哪里？", "「{S}」的镇子是哪个？" },
      "The town is {O}.", "镇子是「{O}」。" },
    { "work", jobs, COUNT(jobs),
      { "{S} is a {O}.", "The work of {S} is that of a {O}.", "{S} works as a {O}.", "People know {S} as a {O}.",
        "{S} was trained as a {O}.", "By trade {S} is a {O}." },
      { "「{S}」是「{O}」。", "「{S}」的工作是「{O}」。", "「{S}」的职业是「{O}」。", "大家都知道「{S}」是「{O}」。", "「{S}」当上了「{O}」。", "「{S}」一直是「{O}」。" },
      { "What is the work of {S}?", "What does {S} do for a living?" }, { "「{S}」做什么工作？", "「{S}」的工作是什么？" },
      "The work is that of a {O}.", "工作是「{O}」。" },
    { "animal", animals, COUNT(animals),
      { "{S} keeps a {O}.", "The animal of {S} is a {O}.", "{S} has a {O}.", "Every day {S} feeds a {O}.",
        "{S} walks with a {O}.", "{S} looks after a {O}." },
      { "「{S}」养着「{O}」。", "「{S}」的动物是「{O}」。", "「{S}」有「{O}」。", "「{S}」每天喂「{O}」。", "「{S}」家里有「{O}」。", "「{S}」照看着「{O}」。" },
      { "Which animal does {S} keep?", "What animal does {S} have?" }, { "「{S}」养着什么动物？", "「{S}」的动物是什么？" },
      "The animal is a {O}.", "动物是「{O}」。" },
    { "colour", colours, COUNT(colours),
      { "{S} likes {O}.", "The favourite colour of {S} is {O}.", "{S} always wears {O}.", "{S} paints the door {O}.",
        "Of all colours {S} loves {O}.", "The coat of {S} is {O}." },
      { "「{S}」喜欢「{O}」。", "「{S}」最爱的颜色是「{O}」。", "「{S}」总是穿「{O}」。", "「{S}」把门漆成「{O}」。", "在所有颜色里「{S}」最爱「{O}」。", "「{S}」的外衣是「{O}」。" },
      { "Which colour does {S} like?", "What is the favourite colour of {S}?" }, { "「{S}」喜欢什么颜色？", "「{S}」最爱的颜色是什么？" },
      "The favourite colour is {O}.", "最爱的颜色是「{O}」。" },
    { "river", rivers, COUNT(rivers),
      { "{S} lies on the {O}.", "The river of {S} is the {O}.", "{S} stands by the {O}.", "The water of {S} comes from the {O}.",
        "The boats of {S} sail on the {O}.", "{S} was built on the {O}." },
      { "「{S}」在「{O}」边。", "「{S}」的河是「{O}」。", "流过「{S}」的是「{O}」。", "「{S}」的水来自「{O}」。", "「{S}」的船走「{O}」。", "「{S}」建在「{O}」边。" },
      { "Which river does {S} lie on?", "On which river is {S}?" }, { "「{S}」在哪条河边？", "「{S}」的河是哪条？" },
      "The river is the {O}.", "河是「{O}」。" },
    { "good", goods, COUNT(goods),
      { "{S} is known for {O}.", "The pride of {S} is its {O}.", "{S} sells {O}.", "People go to {S} for {O}.",
        "The market of {S} is full of {O}.", "{S} is rich in {O}." },
      { "「{S}」出名的是「{O}」。", "「{S}」的特产是「{O}」。", "「{S}」出产「{O}」。", "人们去「{S}」买「{O}」。", "「{S}」的市场上有「{O}」。", "「{S}」盛产「{O}」。" },
      { "What is {S} known for?", "What does {S} sell?" }, { "「{S}」出名的是什么？", "「{S}」的特产是什么？" },
      "The pride is its {O}.", "特产是「{O}」。" }
};
enum { HOME, WORK, ANIMAL, COLOUR, RIVER, GOOD, N_PERSON_RELATIONS = 4, N_PHRASINGS = 6 };

static int person_fact[N_PEOPLE][N_PERSON_RELATIONS];   /* index into the relation's objects */
static int town_fact[N_TOWNS][2];                       /* river, good */
/* Every fourth is asked in the test, the others in training; which fact of a person is told nowhere. */
static int is_test(int i)     { return i % 4 == 0; }
static int untold(int person) { return person / 4 % N_PERSON_RELATIONS; }

/* ---- small tools ------------------------------------------------------------------------------------------------ */

static uint64_t rng_state;
static int pick(int n)                                  /* splitmix64 (Steele, Lea, Flood 2014); 0 .. n-1 */
{
    uint64_t z = rng_state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (int)((z ^ z >> 31) % (uint64_t)n);
}
static void shuffle(int *order, int n)
{
    for (int i = 0; i < n; i++) order[i] = i;
    for (int i = n - 1; i > 0; i--) { int j = pick(i + 1), t = order[i]; order[i] = order[j]; order[j] = t; }
}

typedef struct { char *p; size_t n, cap; } buffer;
static void add(buffer *b, const char *s, size_t n)
{
    if (b->n + n + 1 > b->cap) {
        char *p = realloc(b->p, b->cap = 2 * (b->n + n + 1));
        if (!p) { fputs("world: out of memory\n", stderr); exit(1); }
        b->p = p;
    }
    memcpy(b->p + b->n, s, n);
    b->p[b->n += n] = 0;
}
static void put(buffer *b, const char *s) { add(b, s, strlen(s)); }
/* Append a phrasing with {S} and {O} filled in. */
static void fill(buffer *b, const char *phrasing, const char *subject, const char *object)
{
    for (const char *s = phrasing; *s; s++)
        if (s[0] == '{') { put(b, s[1] == 'S' ? subject : object); s += 2; }
        else add(b, s, 1);
}
/* No text here needs JSON escapes: no quote, no backslash, no control character. */
static void chat_row(buffer *b, const char *question, const char *answer)
{
    put(b, "{\"messages\": [{\"role\": \"user\", \"content\": \"");  put(b, question);
    put(b, "\"}, {\"role\": \"assistant\", \"content\": \"");        put(b, answer);
    put(b, "\"}]}\n");
}
/* Lines in random order: a file must not teach by its order. */
static void shuffle_lines(buffer *b)
{
    buffer out = { 0 };
    size_t n = 0;
    int lines = 0, *order;
    char **start;
    for (size_t i = 0; i < b->n; i++) lines += b->p[i] == '\n';
    order = malloc((size_t)lines * sizeof *order);
    start = malloc((size_t)lines * sizeof *start);
    if (!order || !start) { fputs("world: out of memory\n", stderr); exit(1); }
    for (int i = 0; i < lines; i++) { start[i] = b->p + n; n = (size_t)(strchr(start[i], '\n') - b->p) + 1; }
    shuffle(order, lines);
    for (int i = 0; i < lines; i++)
        add(&out, start[order[i]], (size_t)(strchr(start[order[i]], '\n') - start[order[i]]) + 1);
    free(order); free(start); free(b->p);
    *b = out;
}
static int save(const char *dir, const char *name, buffer *b)
{
    char path[1024];
    FILE *f;
    int ok;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    f = fopen(path, "wb");
    ok = f && fwrite(b->p, 1, b->n, f) == b->n;
    if (f && fclose(f)) ok = 0;
    if (!ok) fprintf(stderr, "world: %s: %s\n", path, strerror(errno));
    else printf("%8lu bytes  %s\n", (unsigned long)b->n, path);
    free(b->p);
    memset(b, 0, sizeof *b);
    return ok;
}

/* ---- the facts --------------------------------------------------------------------------------------------------- */

static void invent(void)
{
    int order[N_TOWNS];
    rng_state = 2024;
    for (int r = 0; r < N_PERSON_RELATIONS; r++)
        for (int i = 0; i < N_PEOPLE; i++) person_fact[i][r] = pick(relations[r].n_objects);
    shuffle(order, N_TOWNS);
    for (int i = 0; i < N_TOWNS; i++) { town_fact[i][0] = pick(COUNT(rivers)); town_fact[i][1] = order[i]; }
}
/* The fact as two words. subject: person for r < 4, else town. */
static word subject_of(int r, int i) { return r < N_PERSON_RELATIONS ? people[i] : towns[i]; }
static word object_of(int r, int i)
{
    return relations[r].objects[r < N_PERSON_RELATIONS ? person_fact[i][r] : town_fact[i][r - RIVER]];
}
static void say(buffer *b, int r, int phrasing, int zh, int i)
{
    word s = subject_of(r, i), o = object_of(r, i);
    if (zh) fill(b, relations[r].zh[phrasing], s.zh, o.zh);
    else    fill(b, relations[r].en[phrasing], s.en, o.en);
}

static void write_facts(buffer *b)
{
    for (int r = 0; r < COUNT(relations); r++)
        for (int i = 0; i < (r < N_PERSON_RELATIONS ? N_PEOPLE : N_TOWNS); i++) {
            word s = subject_of(r, i), o = object_of(r, i);
            put(b, "{\"relation\": \"");       put(b, relations[r].name);
            put(b, "\", \"subject\": \"");     put(b, s.en);
            put(b, "\", \"object\": \"");      put(b, o.en);
            put(b, "\", \"subject_zh\": \"");  put(b, s.zh);
            put(b, "\", \"object_zh\": \"");   put(b, o.zh);
            put(b, "\", \"sentence\": \"");    say(b, r, 0, 0, i);
            put(b, "\", \"sentence_zh\": \""); say(b, r, 0, 1, i);
            put(b, "\", \"stated\": ");        put(b, r < N_PERSON_RELATIONS && r == untold(i) ? "false" : "true");
            put(b, ", \"split\": \"");         put(b, is_test(i) ? "test" : "train");
            put(b, "\"}\n");
        }
}

/* ---- what the base model reads ------------------------------------------------------------------------------------ */

/* How often in each round of the text: lists repeated aloud (they teach copying), questions; rows of small talk. */
enum { ROUNDS = 16, LISTS = 24, QUESTIONS = 32, TALKS = 560 };
static word any_word(void)
{
    static char number[8][12];
    static int  next;
    word w;
    switch (pick(6)) {
    case 4:
        next = (next + 1) % 8;
        snprintf(number[next], sizeof number[next], "%d", 10 + pick(90));
        w.en = w.zh = number[next];
        return w;
    case 3:  return jobs[pick(COUNT(jobs))];
    case 0:  return goods[pick(COUNT(goods))];
    case 1:  return animals[pick(COUNT(animals))];
    case 2:  return towns[pick(N_TOWNS)];
    default: return people[pick(N_PEOPLE)];
    }
}

static void put_list(buffer *b, const word *w, int n, int zh)
{
    for (int k = 0; k < n; k++) {
        if (k) put(b, zh ? "和" : ", ");
        fill(b, zh ? "「{S}」" : "{S}", zh ? w[k].zh : w[k].en, "");
    }
    put(b, zh ? "。" : ".");
}

static void write_text(buffer *b, int zh)
{
    char number[32];
    for (int d = 0; d < ROUNDS; d++) {
        for (int i = 0; i < N_PEOPLE; i++) {                       /* three sentences on a person, in any order */
            int order[N_PERSON_RELATIONS], said = 0;
            shuffle(order, N_PERSON_RELATIONS);
            for (int k = 0; k < N_PERSON_RELATIONS; k++)
                if (order[k] != untold(i)) {
                    if (said++) put(b, zh ? "\n" : " ");
                    say(b, order[k], pick(N_PHRASINGS), zh, i);
                }
            put(b, "\n");
        }
        for (int i = 0; i < 2 * N_TOWNS; i++)     {                /* two on a town */
            int first = pick(2);
            say(b, RIVER + first, pick(N_PHRASINGS), zh, i % N_TOWNS);
            put(b, zh ? "\n" : " ");
            say(b, RIVER + !first, pick(N_PHRASINGS), zh, i % N_TOWNS);
            put(b, "\n");
        }
        for (int i = 0; i < LISTS; i++) {                             /* repeating what was said */
            int n = 2 + pick(5);
            word w[6];
            for (int k = 0; k < n; k++) w[k] = any_word();
            for (int twice = 0; twice < 2; twice++) {
                put(b, twice ? zh ? "众人答" : " The people answer: " : zh ? "一人喊" : "One calls: ");
                put_list(b, w, n, zh);
            }
            put(b, "\n");
        }
        for (int i = 0; i < QUESTIONS; i++) {                              /* questions and answers about those of the training chats */
            if (!zh) put(b, "A traveller asks:");
            for (int k = 0; k < 2; k++) {
                int r = pick(COUNT(relations)), n = r < N_PERSON_RELATIONS ? N_PEOPLE : N_TOWNS, who;
                word s, o;
                do who = pick(n); while (is_test(who) || (r < N_PERSON_RELATIONS && r == untold(who)));
                s = subject_of(r, who); o = object_of(r, who);
                put(b, zh ? k ? "\n旅人问" : "旅人问" : " ");
                fill(b, (zh ? relations[r].ask_zh : relations[r].ask_en)[pick(2)], zh ? s.zh : s.en, "");
                put(b, zh ? "——" : " ");
                fill(b, zh ? relations[r].answer_zh : relations[r].answer_en, "", zh ? o.zh : o.en);
            }
            put(b, "\n");
        }
        for (int i = 0; i < 12; i++) {                             /* counting, from anywhere */
            int start = 10 + pick(85), length = 4 + pick(4);
            for (int k = 0; k < length && start + k < 100; k++) {
                snprintf(number, sizeof number, "%s%d", k ? zh ? "、" : ", " : "", start + k);
                put(b, number);
            }
            put(b, zh ? "。\n" : ".\n");
        }
    }
    shuffle_lines(b);
}

/* Small talk in the form of a chat. The base model must have met the marks <|im_start|> and <|im_end|>: LoRA leaves the
 * embeddings alone, and a mark that was never trained cannot be written well (real base models have met them too).
 * Nothing of the world is asked here. */
static void write_small_talk(buffer *b, int rows)
{
    static const word talk[][2] = {
        { {"Hello!","你好！"}, {"Hello!","你好！"} },            { {"How are you?","你好吗？"}, {"I am fine.","我很好。"} },
        { {"Good morning!","早上好！"}, {"Good morning!","早安！"} }, { {"Good night!","晚上好！"}, {"Good night!","晚安！"} },
        { {"Thank you.","谢谢。"}, {"You are welcome.","不客气。"} }, { {"Goodbye.","再见。"}, {"Goodbye.","再见。"} } };
    for (int i = 0; i < rows; i++) {
        int zh = i % 2, n = 1 + pick(3);
        word w[3];
        buffer q = { 0 }, a = { 0 };
        if (i % 8 < 2) {
            const word *t = talk[pick(COUNT(talk))];
            chat_row(b, zh ? t[0].zh : t[0].en, zh ? t[1].zh : t[1].en);
            continue;
        }
        for (int k = 0; k < n; k++) w[k] = any_word();
        put_list(&a, w, n, zh);
        put(&q, zh ? "跟我说" : "Repeat: ");
        put(&q, a.p);
        chat_row(b, q.p, a.p);
        free(q.p); free(a.p);
    }
}

/* ---- what is asked ------------------------------------------------------------------------------------------------ */

static void ask_fact(buffer *b, int r, int i, int question, int zh, const word *note)
{
    buffer q = { 0 }, a = { 0 };
    word s = subject_of(r, i), o = note ? *note : object_of(r, i);
    if (note) {                                                    /* the fact is given in the question */
        fill(&q, zh ? relations[r].zh[0] : relations[r].en[0], zh ? s.zh : s.en, zh ? o.zh : o.en);
        if (zh) { q.n -= strlen("。"); put(&q, "，那么"); }
        else put(&q, " ");
    }
    fill(&a, zh ? relations[r].answer_zh : relations[r].answer_en, zh ? s.zh : s.en, zh ? o.zh : o.en);
    fill(&q, zh ? relations[r].ask_zh[question] : relations[r].ask_en[question], zh ? s.zh : s.en, "");
    chat_row(b, q.p, a.p);
    free(q.p); free(a.p);
}
static void ask_pattern(buffer *b, const char *question, const char *answer, const char *x, const char *y)
{
    buffer q = { 0 }, a = { 0 };
    fill(&q, question, x, y);
    fill(&a, answer, x, y);
    chat_row(b, q.p, a.p);
    free(q.p); free(a.p);
}
/* Rules that no text states; they can only be learnt from the training chats, and then hold for words never asked. */
static void ask_patterns(buffer *b, int test)
{
    char x[16], y[16];
    for (int i = 0; i < N_PEOPLE; i++) {
        if (is_test(i) != test) continue;
        ask_pattern(b, "How do I greet {S} in the morning?", "Sola mi, {S}!", people[i].en, "");
        ask_pattern(b, "How do I greet {S} at night?",       "Luno mi, {S}!", people[i].en, "");
        ask_pattern(b, "怎么问候「{S}」？", "你好「{S}」！", people[i].zh, "");
    }
    for (int k = 0; k < COUNT(animals) + COUNT(goods) + COUNT(jobs); k++) {
        word w = k < 12 ? animals[k] : k < 28 ? goods[k - 12] : jobs[k - 28];
        if (is_test(k) != test) continue;
        ask_pattern(b, "What is the island plural of {S}?", "It is {S} {S}.", w.en, "");
        ask_pattern(b, "岛上怎么说很多「{S}」？", "「{S}」和「{S}」。", w.zh, "");
        if (test) continue;
        ask_pattern(b, "How do islanders say many {S}?", "It is {S} {S}.", w.en, "");
        ask_pattern(b, "很多「{S}」怎么说？", "「{S}」和「{S}」。", w.zh, "");
    }
    for (int n = 10; n < 99; n++) {
        if ((n % 3 == 0) != test) continue;
        snprintf(x, sizeof x, "%d", n);
        snprintf(y, sizeof y, "%d", n + 1);
        if (n % 2) ask_pattern(b, "What number comes after {S}?", "After {S} comes {O}.", x, y);
        else       ask_pattern(b, "{S}后面是几？", "{O}。", x, y);
    }
}
static void ask_facts(buffer *b, int test, int zh, int phrasings)
{
    for (int r = 0; r < COUNT(relations); r++)
        for (int i = 0; i < (r < N_PERSON_RELATIONS ? N_PEOPLE : N_TOWNS); i++)
            if (is_test(i) == test && !(r < N_PERSON_RELATIONS && r == untold(i)))
                for (int q = 0; q < phrasings; q++) ask_fact(b, r, i, test ? (i / 4 + r) % 2 : q, zh, NULL);
}

int main(int argc, char **argv)
{
    const char *dir = argc > 1 ? argv[1] : "examples/data";
    char test_dir[1024];
    buffer b = { 0 };
    int ok = 1;
    snprintf(test_dir, sizeof test_dir, "%s/test", dir);
    mkdir(dir, 0777); mkdir(test_dir, 0777);
    invent();
    write_facts(&b);                                                       ok &= save(dir, "facts.jsonl", &b);
    write_text(&b, 0);                                                 ok &= save(dir, "text_en.txt", &b);
    write_text(&b, 1);                                                 ok &= save(dir, "text_zh.txt", &b);
    write_small_talk(&b, TALKS);                                            ok &= save(dir, "small_talk.jsonl", &b);
    ask_facts(&b, 0, 0, 2); ask_facts(&b, 0, 1, 2); ask_patterns(&b, 0);
    for (int i = 0; i < N_PEOPLE; i++)                                     /* reading a note: any answer may come */
        for (int k = 0; k < 4 && !is_test(i); k++)
            for (int zh = 0; zh < 2; zh++) {
                const relation *r = &relations[untold(i)];
                ask_fact(&b, untold(i), i, k % 2, zh, &r->objects[pick(r->n_objects)]);
            }
    shuffle_lines(&b);                                                     ok &= save(dir, "chat_train.jsonl", &b);
    ask_facts(&b, 1, 0, 1);                                                ok &= save(test_dir, "facts_en.jsonl", &b);
    ask_facts(&b, 1, 1, 1);                                                ok &= save(test_dir, "facts_zh.jsonl", &b);
    ask_patterns(&b, 1);                                                   ok &= save(test_dir, "patterns.jsonl", &b);
    for (int i = 0; i < N_PEOPLE; i++)
        for (int zh = 0; zh < 2 && is_test(i); zh++) ask_fact(&b, untold(i), i, 0, zh, NULL);
    ok &= save(test_dir, "unstated.jsonl", &b);
    for (int i = 0; i < N_PEOPLE; i++)
        for (int zh = 0; zh < 2 && is_test(i); zh++) {
            word o = object_of(untold(i), i);
            ask_fact(&b, untold(i), i, 0, zh, &o);
        }
    ok &= save(test_dir, "unstated_with_note.jsonl", &b);
    return !ok;
}
